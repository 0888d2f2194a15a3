"""The standard compressors: ternary, sign, largest elements, count sketch, low rank."""
import numpy as np

from gnncy._check import check_choice, check_float, check_int
from gnncy._kernels import projection as kernels
from gnncy._linalg import matmul, matmul_rows
from gnncy._random import stream
from gnncy._threads import run_pieces
from gnncy.optim.compression.compressor import Compressor
from gnncy.optim.compression.ternary import BLOCK, TernaryVector, ternary_quantize

_PIECE = 1 << 16


class TernaryCompressor(Compressor):
    """-1, 0 or 1 and a scale for each block: 2 bits an element, see :func:`ternary_quantize`.

    Parameters
    ----------
    rule : {"twn", "terngrad"}
    block : int or None
        Elements with one scale.
    clip : float or None
        In standard deviations, for "terngrad".
    error_feedback : bool, optional
        By default with "twn"; refused with "terngrad", where it diverges.
    seed : int

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim.compression import TernaryCompressor
    >>> TernaryCompressor().compress({"w": np.ones((64, 64))}).nbytes
    1048
    """

    options = ("rule", "block", "clip")

    def __init__(self, rule: str = "twn", *, block: int | None = BLOCK, clip: float | None = 2.5,
                 error_feedback: bool | None = None, seed: int = 0):
        self.rule, self.block, self.clip = check_choice(rule, "rule", ("twn", "terngrad")), block, clip
        if error_feedback and rule == "terngrad":
            raise ValueError("error feedback with rule='terngrad' diverges: its error may exceed the gradient; use "
                             "rule='twn', or error_feedback=False")
        super().__init__(rule == "twn" if error_feedback is None else error_feedback, seed)
        ternary_quantize([0.0], rule, block=block, clip=clip)  # refuses wrong options

    def _encode(self, name, array, key):
        packed = ternary_quantize(array, self.rule, block=self.block, clip=self.clip, seed=key)
        return {"plus": packed.plus, "minus": packed.minus, "scale": packed.scale}

    def _decode(self, part, shape, key):
        return TernaryVector(part["plus"], part["minus"], part["scale"], shape, self.block).unpack()


class SignCompressor(Compressor):
    """The sign of each element, + for 0, and the mean of their absolute values: 1 bit an element.

    Parameters
    ----------
    error_feedback : bool
        Without it the signs of large gradients drown those of small ones.

    References
    ----------
    Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression Schemes, ICML 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim.compression import SignCompressor
    >>> compressor = SignCompressor()
    >>> compressor.decompress(compressor.compress({"w": [1.0, -2.0, 3.0, -2.0]}))["w"]
    array([ 2., -2.,  2., -2.])
    """

    def __init__(self, *, error_feedback: bool = True):
        super().__init__(error_feedback, 0)

    def _encode(self, name, array, key):
        scale = np.abs(array).mean(dtype=np.float64) if array.size else 0.0
        return {"signs": np.packbits(array >= 0), "scale": np.array([scale], array.dtype)}

    def _decode(self, part, shape, key):
        signs = np.unpackbits(part["signs"], count=int(np.prod(shape, dtype=np.int64)))
        return part["scale"] * (2 * signs.view(np.int8) - 1).astype(part["scale"].dtype)


class TopKCompressor(Compressor):
    """The largest elements of each tensor, by place: 8 bytes each.

    Parameters
    ----------
    ratio : float
        Of elements that are sent, at least one of a tensor.
    error_feedback : bool

    References
    ----------
    Lin et al., Deep Gradient Compression, ICLR 2018.

    Examples
    --------
    >>> from gnncy.optim.compression import TopKCompressor
    >>> compressor = TopKCompressor(0.5)
    >>> compressor.decompress(compressor.compress({"w": [1.0, -2.0, 3.0, -2.5]}))["w"]
    array([ 0. ,  0. ,  3. , -2.5])
    """

    options = ("ratio",)

    def __init__(self, ratio: float = 0.01, *, error_feedback: bool = True):
        self.ratio = check_float(ratio, "ratio", 0, 1)
        super().__init__(error_feedback, 0)

    def _encode(self, name, array, key):
        flat = array.reshape(-1)
        if flat.size > 1 << 32:
            raise ValueError(f"{name!r} has {flat.size} elements; places are 32-bit")
        where = largest(flat, max(1, round(self.ratio * flat.size)))
        return {"where": where.astype(np.uint32), "values": flat[where]}

    def _decode(self, part, shape, key):
        out = np.zeros(int(np.prod(shape, dtype=np.int64)), part["values"].dtype)
        out[part["where"]] = part["values"]
        return out


class CountSketchCompressor(Compressor):
    r"""Sums of elements by hashes of their places, with random signs; the largest estimates come back.

    :math:`S_{r, h_r(i)} \mathrel{+}= \sigma_r(i)\, g_i`, and of each element the median over the rows of
    :math:`\sigma_r(i)\, S_{r, h_r(i)}`. Sketches of several workers may be added. Only elements that stand out from
    the rest can be found again.

    Parameters
    ----------
    ratio : float
        Numbers sent for each element.
    rows : int
        Odd, for a median that is one of them.
    heavy : float or None
        Estimates that are kept, the largest ones, for each number sent. None keeps all: each row is unbiased,
        but the error is larger than the gradient and error feedback diverges.
    error_feedback : bool
    seed : int

    References
    ----------
    Charikar, Chen and Farach-Colton, Finding Frequent Items in Data Streams, ICALP 2002. Ivkin et al.,
    Communication-efficient Distributed SGD with Sketching, NeurIPS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim.compression import CountSketchCompressor
    >>> gradient = np.zeros(1000)
    >>> gradient[[3, 500]] = 5.0, -2.0
    >>> compressor = CountSketchCompressor(0.1, heavy=0.02)
    >>> out = compressor.decompress(compressor.compress({"w": gradient}))["w"]
    >>> np.flatnonzero(out), out[[3, 500]]
    (array([  3, 500]), array([ 5., -2.]))
    """

    options = ("ratio", "rows", "heavy")

    def __init__(self, ratio: float = 0.1, *, rows: int = 5, heavy: float | None = 0.1, error_feedback: bool = True,
                 seed: int = 0):
        self.ratio, self.rows = check_float(ratio, "ratio", above=0), check_int(rows, "rows", 1)
        self.heavy = None if heavy is None else check_float(heavy, "heavy", 0, 1)
        if heavy is None and error_feedback:
            raise ValueError("error feedback with heavy=None diverges: the error of all estimates exceeds the "
                             "gradient; give heavy, or error_feedback=False")
        super().__init__(error_feedback, seed)

    def _encode(self, name, array, key):
        flat = array.reshape(-1)
        table = np.zeros((self.rows, max(1, round(self.ratio * flat.size / self.rows))), flat.dtype)
        run_pieces(lambda a, b: kernels.sketch(a, b, key, flat, table), self.rows, 1)
        if not self.error_feedback:
            return {"table": table}
        found = self._estimates(table, flat.size, key)
        square = np.dot(found, found)
        return {"table": table, "scale": np.array([np.dot(found, flat) / square if square > 0 else 0], flat.dtype)}

    def _decode(self, part, shape, key):
        found = self._estimates(part["table"], int(np.prod(shape, dtype=np.int64)), key)
        if "scale" in part:
            found *= part["scale"]
        return found

    def _estimates(self, table: np.ndarray, n: int, key: int) -> np.ndarray:
        out = np.zeros(n, table.dtype)

        def piece(start, stop):
            rows = np.empty((len(table), stop - start), table.dtype)
            kernels.estimate(start, stop, key, table, rows)
            np.median(rows, axis=0, out=out[start:stop])

        run_pieces(piece, n, _PIECE)
        if self.heavy is not None:
            kept = largest(out, min(n, max(1, round(self.heavy * table.size))))
            values = out[kept]
            out.fill(0)
            out[kept] = values
        return out


class PowerSGDCompressor(Compressor):
    """A matrix as the product of two thin ones, by one step of power iteration from the last; vectors as they are.

    Parameters
    ----------
    rank : int
        A tensor of more dimensions is a matrix of its first dimension against the rest. One that would not
        become smaller is sent whole.
    error_feedback : bool
    seed : int
        Of the first step's start.

    References
    ----------
    Vogels, Karimireddy and Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization,
    NeurIPS 2019.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim.compression import PowerSGDCompressor
    >>> gradient = np.outer(np.arange(1.0, 7.0), np.ones(5))
    >>> compressor = PowerSGDCompressor(1)
    >>> message = compressor.compress({"w": gradient})
    >>> message.nbytes, np.allclose(compressor.decompress(message)["w"], gradient)
    (104, True)
    """

    options = ("rank",)

    def __init__(self, rank: int = 2, *, error_feedback: bool = True, seed: int = 0):
        self.rank = check_int(rank, "rank", 1)
        self.basis: dict[str, np.ndarray] = {}
        super().__init__(error_feedback, seed)

    def _encode(self, name, array, key):
        rows = array.shape[0] if array.ndim > 1 else 1
        columns = array.size // max(rows, 1)
        if self.rank * (rows + columns) >= array.size:
            return {"whole": array.reshape(-1).copy()}
        matrix, basis = array.reshape(rows, columns), self.basis.get(name)
        if basis is None or len(basis) != columns:
            basis = stream(self.seed, "PowerSGD", name).standard_normal((columns, self.rank))
        left = np.linalg.qr(matmul(matrix, basis.astype(array.dtype)))[0]
        right = matmul_rows(matrix, left)
        self.basis[name] = right
        return {"left": left, "right": right}

    def _decode(self, part, shape, key):
        return part["whole"] if "whole" in part else matmul(part["left"], part["right"].T)

    def state_dict(self):
        """A copy of what the next message depends on."""
        return super().state_dict() | {"basis": {name: x.copy() for name, x in self.basis.items()}}

    def load_state_dict(self, state):
        """Go on exactly where :meth:`state_dict` was taken."""
        basis = {name: np.array(x) for name, x in state.get("basis", {}).items()}
        super().load_state_dict(state)
        self.basis = basis


def largest(x: np.ndarray, k: int) -> np.ndarray:
    """Ascending places of the ``k`` largest |x|; of equal ones the first."""
    if k >= x.size:
        return np.arange(x.size)
    sizes = np.abs(x)
    least = np.partition(sizes, x.size - k)[x.size - k]
    above = np.flatnonzero(sizes > least)
    return np.sort(np.concatenate([above, np.flatnonzero(sizes == least)[:k - above.size]]))
