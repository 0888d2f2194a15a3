"""One interface for all compressors: gradients in, a message with its bytes, gradients out; error feedback."""
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gnncy._check import check_finite, check_int
from gnncy._random import derive
from gnncy.optim.compression.ternary import as_floats

HEADER_BYTES = 16  # seed and step


@dataclass(frozen=True)
class Message:
    """What would be sent: everything that :meth:`Compressor.decompress` needs beside names, shapes and options.

    Attributes
    ----------
    kind : str
        The compressor's class.
    step : int
        With the seed, the key of all that was drawn.
    seed : int
    shapes : dict of str to tuple of int
        Of the gradients. Both sides know them: they are not counted.
    dtype : dtype
        Of the gradients.
    parts : dict of str to dict of str to array
    """

    kind: str
    step: int
    seed: int
    shapes: dict[str, tuple[int, ...]]
    dtype: np.dtype
    parts: dict[str, dict[str, np.ndarray]]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, keys, scales and indices included, and 16 for seed and step."""
        return HEADER_BYTES + sum(array.nbytes for part in self.parts.values() for array in part.values())


class Compressor:
    """Base of the compressors. A subclass writes ``_encode`` and ``_decode`` for a tensor, or for all together.

    With error feedback, what a message leaves out of ``gradients + residual`` is the next residual: the sum of all
    that was sent differs from the sum of the gradients by the residual alone.

    Parameters
    ----------
    error_feedback : bool
        Costs as much memory as the gradients.
    seed : int
        Of what is drawn; with the number of the call and the name of the tensor it decides it.

    Attributes
    ----------
    step : int
        Calls of :meth:`compress`.
    residual : dict of str to array
        What has not been sent.

    References
    ----------
    Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression Schemes, ICML 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim.compression import TopKCompressor
    >>> compressor = TopKCompressor(0.25)
    >>> message = compressor.compress({"w": np.array([4.0, -1.0, 2.0, 0.5], np.float32)})
    >>> message.nbytes, compressor.decompress(message)["w"], compressor.residual["w"]
    (24, array([4., 0., 0., 0.], dtype=float32), array([ 0. , -1. ,  2. ,  0.5], dtype=float32))
    """

    options: tuple[str, ...] = ()

    def __init__(self, error_feedback: bool, seed: int):
        self.error_feedback, self.seed = bool(error_feedback), check_int(seed, "seed", 0)
        self.step = 0
        self.residual: dict[str, np.ndarray] = {}

    def compress(self, gradients: Mapping[str, np.ndarray]) -> Message:
        """Write gradients in few bytes.

        Parameters
        ----------
        gradients : dict of str to array_like
            float64 ones make all float64, else all are float32.

        Returns
        -------
        Message

        Raises
        ------
        ValueError
            If there are none, a value is not finite, or a shape differs from that of an earlier call. Nothing is
            changed then.
        """
        if not gradients:
            raise ValueError("gradients is empty: there is nothing to compress")
        arrays = {name: as_floats(gradient, name) for name, gradient in gradients.items()}
        dtype = np.result_type(*arrays.values())
        for name, array in arrays.items():
            check_finite(array, f"the gradient of {name!r}")
            kept = self.residual.get(name)
            if kept is not None and kept.shape != array.shape:
                raise ValueError(f"the gradient of {name!r} had shape {kept.shape} and now has {array.shape}")
            arrays[name] = array.astype(dtype, copy=False) if kept is None else (array + kept).astype(dtype, copy=False)
        parts = self._encode_all(arrays, self.step)
        message = Message(type(self).__name__, self.step, self.seed, {name: x.shape for name, x in arrays.items()},
                          dtype, parts)
        if self.error_feedback:
            sent = self.decompress(message)
            self.residual.update({name: x - sent[name] for name, x in arrays.items()})
        self.step += 1
        return message

    def decompress(self, message: Message) -> dict[str, np.ndarray]:
        """Gradients from a message; any compressor with the same options can read it.

        Parameters
        ----------
        message : Message

        Returns
        -------
        dict of str to array
        """
        if message.kind != type(self).__name__:
            raise ValueError(f"the message is a {message.kind}'s, not a {type(self).__name__}'s")
        return self._decode_all(message)

    def state_dict(self) -> dict:
        """A copy of what the next message depends on.

        Returns
        -------
        dict
            Numbers, and the arrays of ``residual`` by name.
        """
        return {"kind": type(self).__name__, "options": self._options(), "step": self.step,
                "residual": {name: x.copy() for name, x in self.residual.items()}}

    def load_state_dict(self, state: dict) -> None:
        """Go on exactly where :meth:`state_dict` was taken.

        Parameters
        ----------
        state : dict
            From :meth:`state_dict` of a compressor with the same options.
        """
        if state.get("kind") != type(self).__name__ or state["options"] != self._options():
            raise ValueError(f"the state of a {state.get('kind')} with {state.get('options')} cannot be loaded into "
                             f"a {type(self).__name__} with {self._options()}")
        step = check_int(state["step"], "step", 0)
        self.residual = {name: np.array(x) for name, x in state["residual"].items()}
        self.step = step

    def _options(self) -> dict:
        return {name: getattr(self, name) for name in (*self.options, "error_feedback", "seed")}

    def _key(self, seed: int, step: int, name: str) -> int:
        return derive(seed, type(self).__name__, step, name)

    def _encode_all(self, arrays: dict[str, np.ndarray], step: int) -> dict[str, dict[str, np.ndarray]]:
        return {name: self._encode(name, array, self._key(self.seed, step, name)) for name, array in arrays.items()}

    def _decode_all(self, message: Message) -> dict[str, np.ndarray]:
        return {name: np.asarray(self._decode(message.parts[name], shape, self._key(message.seed, message.step, name)),
                                 message.dtype).reshape(shape) for name, shape in message.shapes.items()}

    def _encode(self, name: str, array: np.ndarray, key: int) -> dict[str, np.ndarray]:
        raise NotImplementedError

    def _decode(self, part: dict[str, np.ndarray], shape: tuple[int, ...], key: int) -> np.ndarray:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._options().items())})"
