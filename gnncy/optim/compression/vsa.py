"""Hypervectors (multiply, add, permute), and gradients written as one of them."""
from collections.abc import Sequence

import numpy as np

from gnncy._check import check_array, check_choice, check_float, check_int
from gnncy._kernels import projection, ternary
from gnncy._memory import aligned_empty
from gnncy._random import mix64, stream
from gnncy._threads import run_pieces
from gnncy.optim.compression.compressor import Compressor
from gnncy.optim.compression.ternary import BLOCK, TernaryVector, count_blocks, over_blocks, ternary_quantize

KINDS = ("bipolar", "ternary", "real")
_PIECE = 1 << 16


def random_hypervector(dimension: int, kind: str = "bipolar", *, seed: int = 0, name: str = "") -> np.ndarray:
    """A random vector, nearly orthogonal to others of other names.

    Parameters
    ----------
    dimension : int
    kind : {"bipolar", "ternary", "real"}
        -1 or 1; -1, 0 or 1, each as often; normal with variance 1.
    seed : int
    name : str

    Returns
    -------
    float32 array of shape (dimension,)

    Examples
    --------
    >>> from gnncy.optim.compression import random_hypervector, similarity
    >>> a, b = (random_hypervector(10_000, name=name) for name in ("a", "b"))
    >>> abs(similarity(a, b)) < 0.05
    True
    """
    check_int(dimension, "dimension", 1)
    random = stream(seed, "hypervector", check_choice(kind, "kind", KINDS), name)
    if kind == "real":
        return random.standard_normal(dimension, np.float32)
    values = random.integers(0, 2 if kind == "bipolar" else 3, dimension, np.int8)
    return (2 * values - 1 if kind == "bipolar" else values - 1).astype(np.float32)


def bind(a, b):
    """The product of two hypervectors, element by element: like neither of them.

    Parameters
    ----------
    a, b : arrays of shape (d,), or two TernaryVector
        Packed ones are bound on their words.

    Returns
    -------
    array or TernaryVector

    References
    ----------
    Gayler, Vector Symbolic Architectures Answer Jackendoff's Challenges for Cognitive Neuroscience, 2003.

    Examples
    --------
    >>> from gnncy.optim.compression import bind
    >>> bind([1, -1, 1], [2, 3, 4])
    array([ 2., -3.,  4.], dtype=float32)
    """
    if isinstance(a, TernaryVector) and isinstance(b, TernaryVector):
        return a.product(b)
    a, b = _pair(a, b)
    return a * b


def unbind(bound, key):
    """The other factor of a bound vector; 0 where the key is, since there nothing was kept.

    Parameters
    ----------
    bound, key : arrays of shape (d,), or two TernaryVector

    Returns
    -------
    array or TernaryVector

    Examples
    --------
    >>> from gnncy.optim.compression import bind, unbind
    >>> unbind(bind([5, 6, 7], [1, -1, 0]), [1, -1, 0])
    array([5., 6., 0.], dtype=float32)
    """
    if isinstance(bound, TernaryVector) and isinstance(key, TernaryVector):
        return bound.product(key)
    bound, key = _pair(bound, key)
    return np.divide(bound, key, out=np.zeros_like(bound), where=key != 0)


def bundle(vectors: Sequence, weights: Sequence[float] | None = None) -> np.ndarray:
    """The weighted sum of hypervectors: like each of them. Real, whatever they are.

    Parameters
    ----------
    vectors : sequence of arrays of shape (d,) or TernaryVector
    weights : sequence of float, optional

    Returns
    -------
    array of shape (d,)

    Notes
    -----
    The sign of the sum, or a vote, would keep less of each.

    Examples
    --------
    >>> from gnncy.optim.compression import bundle
    >>> bundle([[1, -1, 1], [1, 1, -1], [1, 1, 1]])
    array([3., 1., 1.], dtype=float32)
    """
    rows = [_array(vector, f"vectors[{i}]") for i, vector in enumerate(vectors)]
    if not rows:
        raise ValueError("vectors is empty: there is nothing to bundle")
    if len({row.size for row in rows}) > 1:
        raise ValueError(f"vectors must have one length, got {sorted({row.size for row in rows})}")
    factors = [1.0] * len(rows) if weights is None else [check_float(w, "weights") for w in weights]
    if len(factors) != len(rows):
        raise ValueError(f"weights must have one entry per vector, {len(rows)}, got {len(factors)}")
    total = np.zeros(rows[0].size, np.result_type(*rows))
    for row, factor in zip(rows, factors, strict=True):
        total += row.dtype.type(factor) * row
    return total


def permute(a, shift: int = 1):
    """A hypervector rotated by some places: unlike itself; undone by the negative shift.

    Parameters
    ----------
    a : array of shape (d,) or TernaryVector
    shift : int

    Returns
    -------
    array or TernaryVector

    Examples
    --------
    >>> from gnncy.optim.compression import permute
    >>> permute([1, 2, 3, 4])
    array([4., 1., 2., 3.], dtype=float32)
    """
    shift = check_int(shift, "shift")
    if not isinstance(a, TernaryVector):
        return np.roll(_array(a, "a"), shift)
    if a.scale.size > 1:
        raise ValueError("a packed vector with one scale for each block cannot be rotated; quantise with block=None")
    planes = []
    for plane in (a.plus, a.minus):
        bits = np.unpackbits(plane.astype("<u8", copy=False).view(np.uint8), count=a.size, bitorder="little")
        rotated = np.zeros(plane.nbytes, np.uint8)
        packed = np.packbits(np.roll(bits, shift), bitorder="little")
        rotated[:packed.size] = packed
        planes.append(rotated.view("<u8").astype(np.uint64, copy=False))
    return TernaryVector(planes[0], planes[1], a.scale, a.shape)


def similarity(a, b) -> float:
    """The cosine of two hypervectors; 0 if one is all zeros.

    Parameters
    ----------
    a, b : arrays of shape (d,), or two TernaryVector
        Packed ones are compared by counting bits, without their scales.

    Returns
    -------
    float

    Examples
    --------
    >>> from gnncy.optim.compression import similarity
    >>> similarity([1, 1, 0, 0], [1, 0, 0, 1])
    0.5
    """
    if isinstance(a, TernaryVector) and isinstance(b, TernaryVector):
        return a.cosine(b)
    a, b = (x.astype(np.float64) for x in _pair(a, b))
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else 0.0


class VSAGradientCompressor(Compressor):
    r"""All gradients as one hypervector: each bound to a key, projected to its share of coordinates, bundled.

    Of a tensor of n elements :math:`y = S H (k \odot g)`: the key :math:`k` of ±1, a Hadamard rotation in blocks of
    4096 and smaller powers of 2, and the D = ``ratio`` n coordinates that are its place in the bundle. Nothing is
    stored: keys are hashes of (seed, step, name, place). The bundle is ternarised, with the scale
    :math:`\langle y,t\rangle/\langle t,t\rangle` of each tensor, and unbound by
    :math:`\hat g = k \odot H^\top S^\top a t`.

    No linear code that does not look at the data has a cosine above :math:`\sqrt{D/n}` on average; this one has
    :math:`0.90\sqrt{D/n}`.

    Parameters
    ----------
    ratio : float
        Coordinates for each element, in (0, 1]; at least one for a tensor.
    projection : {"hadamard", "sparse"}
        "sparse" adds each element to one coordinate, by a hash: one pass, but a cosine of
        :math:`\sqrt{D/(D+n)}` at most.
    values : {"ternary", "float"}
        2 bits or 32 for a coordinate.
    unbiased : bool
        Scale so that the mean over seeds is the gradient ("float"), at the price of a larger error. Otherwise the
        error is least, and error feedback converges.
    error_feedback : bool, optional
        By default unless ``unbiased``.
    seed : int

    References
    ----------
    Gayler, Vector Symbolic Architectures Answer Jackendoff's Challenges for Cognitive Neuroscience, 2003. Ailon and
    Chazelle, The Fast Johnson-Lindenstrauss Transform, SIAM J. Comput. 2009.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim.compression import VSAGradientCompressor, similarity
    >>> gradient = np.random.default_rng(0).normal(size=8192).astype(np.float32)
    >>> compressor = VSAGradientCompressor(0.8)
    >>> message = compressor.compress({"w": gradient})
    >>> message.nbytes, round(similarity(compressor.decompress(message)["w"], gradient), 1)
    (1668, 0.8)
    """

    options = ("ratio", "projection", "values", "unbiased")

    def __init__(self, ratio: float = 0.8, *, projection: str = "hadamard", values: str = "ternary",
                 unbiased: bool = False, error_feedback: bool | None = None, seed: int = 0):
        self.ratio = check_float(ratio, "ratio", 0, 1, above=0)
        self.projection = check_choice(projection, "projection", ("hadamard", "sparse"))
        self.values, self.unbiased = check_choice(values, "values", ("ternary", "float")), bool(unbiased)
        if unbiased and error_feedback:
            raise ValueError("error feedback with unbiased=True diverges: the error exceeds the gradient; choose one")
        super().__init__(not unbiased if error_feedback is None else error_feedback, seed)

    def coordinates(self, n: int) -> int:
        """How many coordinates a tensor of ``n`` elements has.

        Parameters
        ----------
        n : int

        Returns
        -------
        int
        """
        return min(n, max(1, round(self.ratio * n)))

    def _encode_all(self, arrays, step):
        sizes = {name: self.coordinates(x.size) for name, x in arrays.items()}
        dtype = np.result_type(*arrays.values())
        y = np.zeros(sum(sizes.values()), dtype)
        for (name, array), slot in zip(arrays.items(), _slots(sizes.values()), strict=True):
            self._project(array.reshape(-1), self._key(self.seed, step, name), y[slot])
        if self.values == "float":
            return {"": {"bundle": y}}
        # Divided by its mean, every tensor has the threshold 0.7: one packed vector for all.
        scale, threshold = np.zeros(len(sizes), dtype), dtype.type(0.7)
        for i, slot in enumerate(_slots(sizes.values())):
            absolute = np.abs(y[slot])
            mean = absolute.mean(dtype=np.float64) if absolute.size else 0.0
            if mean > 0:
                y[slot] /= dtype.type(mean)
                kept = np.abs(y[slot]) > threshold
                scale[i] = absolute.mean(where=kept, dtype=np.float64) if kept.any() else 0
        plus, minus = (aligned_empty(-(-y.size // 64), np.uint64) for _ in range(2))
        blocks = count_blocks(y.size, BLOCK)
        level, kept = np.full(blocks, threshold), np.empty((blocks, 2))
        over_blocks(y.size, BLOCK, lambda a, b: ternary.pack(a, b, BLOCK, y, level, plus, minus, kept))
        return {"": {"plus": plus, "minus": minus, "scale": scale}}

    def _decode_all(self, message):
        sizes = {name: self.coordinates(int(np.prod(shape, dtype=np.int64))) for name, shape in message.shapes.items()}
        part = message.parts[""]
        if self.values == "float":
            y = part["bundle"]
        else:
            one = np.ones(1, message.dtype)
            y = TernaryVector(part["plus"], part["minus"], one, (sum(sizes.values()),)).unpack()
            for scale, slot in zip(part["scale"], _slots(sizes.values()), strict=True):
                y[slot] *= scale
        return {name: self._lift(y[slot], message.shapes[name], self._key(message.seed, message.step, name))
                for name, slot in zip(message.shapes, _slots(sizes.values()), strict=True)}

    def _project(self, x: np.ndarray, key: int, out: np.ndarray) -> None:
        if self.projection == "sparse":
            projection.sketch(0, 1, key, x, out.reshape(1, -1))
            return
        rotated = np.empty_like(x)
        run_pieces(lambda a, b: projection.flip(a, b, key, x, rotated), x.size, _PIECE)
        _rotate(rotated)
        np.take(rotated, _chosen(x.size, out.size, key), out=out)

    def _lift(self, y: np.ndarray, shape: tuple[int, ...], key: int) -> np.ndarray:
        out = np.zeros(int(np.prod(shape, dtype=np.int64)), y.dtype)
        n, d = out.size, y.size
        if self.projection == "sparse":
            table = np.ascontiguousarray(y).reshape(1, -1)
            run_pieces(lambda a, b: projection.estimate(a, b, key, table, out[a:b].reshape(1, -1)), n, _PIECE)
            factor = 1.0 if self.unbiased else d / (n + d)
        else:
            out[_chosen(n, d, key)] = y
            _rotate(out)
            run_pieces(lambda a, b: projection.flip(a, b, key, out, out), n, _PIECE)
            factor = n / max(d, 1) if self.unbiased else 1.0
        if factor != 1.0:
            out *= out.dtype.type(factor)
        return out.reshape(shape)


class Mod3VSACompressor(Compressor):
    """The reference's scheme, for comparison: not for use.

    Dense sparse-ternary projections, keys of -1, 0 and 1 subtracted modulo 3, and the sign of the sum of all tensors as
    the bundle. Here names are taken in order, so that the message does not depend on a hash map.

    Parameters
    ----------
    dimension : int
        Least coordinates.
    ratio : float
        Coordinates for each element, if that is more.
    seed : int

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim.compression import Mod3VSACompressor, similarity
    >>> gradients = {str(i): np.random.default_rng(i).normal(size=500) for i in range(4)}
    >>> compressor = Mod3VSACompressor(2048)
    >>> out = compressor.decompress(compressor.compress(gradients))
    >>> similarity(np.concatenate([*out.values()]), np.concatenate([*gradients.values()])) < 0.5
    True
    """

    options = ("dimension", "ratio")

    def __init__(self, dimension: int = 8192, ratio: float = 0.1, *, seed: int = 0):
        self.dimension, self.ratio = check_int(dimension, "dimension", 1), check_float(ratio, "ratio", 0)
        super().__init__(False, seed)

    def _encode_all(self, arrays, step):
        d = self._width(sum(x.size for x in arrays.values()))
        total, scales = np.zeros(d, np.int64), []
        for i, name in enumerate(sorted(arrays)):
            y = arrays[name].reshape(-1) @ self._matrix(arrays[name].size, d)
            scale = np.abs(y).mean()
            scales.append(scale)
            t = (y > scale).astype(np.int64) - (y < -scale)
            total += _mod3(t - self._trits(i, d))
        packed = ternary_quantize(np.sign(total), ratio=0.0, block=None)
        return {"": {"plus": packed.plus, "minus": packed.minus, "scale": np.array(scales, np.float32)}}

    def _decode_all(self, message):
        sizes = {name: int(np.prod(shape, dtype=np.int64)) for name, shape in message.shapes.items()}
        d, part, out = self._width(sum(sizes.values())), message.parts[""], {}
        signs = TernaryVector(part["plus"], part["minus"], np.ones(1, np.float32), (d,)).signs().astype(np.int64)
        for i, name in enumerate(sorted(sizes)):
            u = part["scale"][i] * _mod3(signs + self._trits(i, d)).astype(np.float32)
            out[name] = (self._matrix(sizes[name], d) @ u).astype(message.dtype).reshape(message.shapes[name])
        return {name: out[name] for name in message.shapes}

    def _width(self, total: int) -> int:
        return max(self.dimension, int(max(self.ratio * total, 256)))

    def _trits(self, i: int, d: int) -> np.ndarray:
        u = stream(self.seed, "key", i).random(d)
        return (u >= 0.66).astype(np.int64) - (u < 0.33)

    def _matrix(self, n: int, d: int) -> np.ndarray:
        if 4 * n * d > 1 << 31:
            raise ValueError(f"the reference's projection of {n} elements to {d} needs {4 * n * d / 1e9:.1f} GB; use "
                             "VSAGradientCompressor, which stores none")
        u = stream(self.seed, "projection", n).random((n, d), np.float32)
        return ((u < 0.16).astype(np.float32) - (u >= 0.84)) * np.float32(np.sqrt(3 / d))


def _mod3(t: np.ndarray) -> np.ndarray:
    return (t + 1) % 3 - 1


def _slots(sizes):
    """Each tensor's coordinates in the bundle."""
    start = 0
    for size in sizes:
        yield slice(start, start + size)
        start += size


def _chosen(n: int, d: int, key: int) -> np.ndarray:
    """``d`` of ``n`` coordinates, spread evenly from a random start: each is among them with probability d/n."""
    return (np.arange(d, dtype=np.int64) * n + mix64(key) % max(n, 1)) // max(d, 1)


def _rotate(x: np.ndarray) -> None:
    """Rotate in place, in blocks of 4096, and the rest in blocks of its binary digits: no padding."""
    whole = x.size // BLOCK
    over_blocks(whole * BLOCK, BLOCK, lambda a, b: projection.hadamard(a, b, 0, BLOCK, x))
    start = whole * BLOCK
    while start < x.size:
        size = 1 << ((x.size - start).bit_length() - 1)
        projection.hadamard(0, 1, start, size, x)
        start += size


def _array(value, name: str) -> np.ndarray:
    return value.signs().astype(np.float32).reshape(-1) if isinstance(value, TernaryVector) else check_array(
        value, name, ndim=1)


def _pair(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = _array(a, "a"), _array(b, "b")
    if a.size != b.size:
        raise ValueError(f"the hypervectors have {a.size} and {b.size} elements")
    dtype = np.result_type(a, b)
    return a.astype(dtype, copy=False), b.astype(dtype, copy=False)
