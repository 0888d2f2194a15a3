"""Vectors of -1, 0 and 1 with a scale, in two bits an element."""
import numpy as np

from gnncy._check import check_choice, check_float, check_int
from gnncy._kernels import ternary as kernels
from gnncy._memory import aligned_empty
from gnncy._random import derive
from gnncy._threads import run_pieces

BLOCK = 4096  # elements with one scale: a block stays in the first-level cache between its passes
RULES = ("twn", "terngrad", "reference_deterministic", "reference_stochastic")
_PIECE = 1 << 17  # elements that one thread takes at a time: they stay in the second-level cache


class TernaryVector:
    """A scale times -1, 0 or 1 for each element, packed.

    Made by :func:`ternary_quantize`. Products and distances are those of the signs, without scales, counted on the
    packed words.

    Parameters
    ----------
    plus, minus : uint64 arrays
        Bit j of word w stands for element 64 w + j; bits past the last element are 0.
    scale : float array
        One for all, or one for each block.
    shape : tuple of int
        Of the array that was packed.
    block : int or None
        Elements with one scale, neighbours in row-major order.

    Attributes
    ----------
    size : int
        Number of elements.

    Examples
    --------
    >>> from gnncy.optim.compression import ternary_quantize
    >>> a = ternary_quantize([3.0, 0.1, -2.0, 2.0])
    >>> a.signs()
    array([ 1,  0, -1,  1], dtype=int8)
    >>> a.dot(ternary_quantize([1.0, 1.0, 1.0, -1.0])), a.nbytes
    (-1, 24)
    """

    def __init__(self, plus: np.ndarray, minus: np.ndarray, scale: np.ndarray, shape: tuple[int, ...],
                 block: int | None = None):
        self.plus, self.minus, self.scale, self.shape, self.block = plus, minus, scale, tuple(shape), block
        self.size = int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of planes and scales."""
        return self.plus.nbytes + self.minus.nbytes + self.scale.nbytes

    def unpack(self, dtype=None) -> np.ndarray:
        """The vector as an array.

        Parameters
        ----------
        dtype : float32 or float64, optional
            That of the scales by default.

        Returns
        -------
        array of shape ``shape``
        """
        out = np.zeros(self.shape, self.scale.dtype if dtype is None else dtype)
        self.add_to(out)
        return out

    def add_to(self, y: np.ndarray, factor: float = 1.0) -> np.ndarray:
        """Add a multiple of the vector to an array, in one pass over it.

        Parameters
        ----------
        y : float32 or float64 array of shape ``shape``
            C-contiguous; changed in place.
        factor : float

        Returns
        -------
        array
            ``y``.
        """
        if not isinstance(y, np.ndarray) or y.shape != self.shape or y.dtype not in (np.float32, np.float64):
            raise ValueError(f"y must be a float32 or float64 array of shape {self.shape}, got "
                             f"{getattr(y, 'dtype', type(y).__name__)} of shape {np.shape(y)}")
        if not (y.flags.c_contiguous and y.flags.writeable and y.dtype.isnative):
            raise ValueError("y is changed in place and must be C-contiguous, writable and of native byte order")
        flat, block = y.reshape(-1), self.block or BLOCK
        factors = (check_float(factor, "factor") * self.scale).astype(y.dtype)
        if self.block is None:
            factors = np.full(count_blocks(self.size, block), factors[0], y.dtype)
        over_blocks(self.size, block, lambda a, b: kernels.axpy(a, b, block, self.plus, self.minus, factors, flat))
        return y

    def signs(self) -> np.ndarray:
        """The vector without scales.

        Returns
        -------
        int8 array of shape ``shape``
        """
        bits = [np.unpackbits(plane.astype("<u8", copy=False).view(np.uint8), count=self.size, bitorder="little")
                for plane in (self.plus, self.minus)]
        return (bits[0].view(np.int8) - bits[1].view(np.int8)).reshape(self.shape)

    def sum(self) -> int:
        """The sum of the signs."""
        plus, minus = (kernels.compare(plane, plane, plane, plane)[2] for plane in (self.plus, self.minus))
        return plus - minus

    def count_nonzero(self) -> int:
        """How many elements are not 0."""
        return self._compare(self)[2]

    def dot(self, other: "TernaryVector") -> int:
        """The dot product of the signs of two vectors.

        Parameters
        ----------
        other : TernaryVector

        Returns
        -------
        int
        """
        return self._compare(other)[0]

    def hamming(self, other: "TernaryVector") -> int:
        """How many elements have different signs.

        Parameters
        ----------
        other : TernaryVector

        Returns
        -------
        int
        """
        return self._compare(other)[1]

    def cosine(self, other: "TernaryVector") -> float:
        """The cosine of the signs of two vectors; 0 if one is all zeros.

        Parameters
        ----------
        other : TernaryVector

        Returns
        -------
        float
        """
        dot, _, a, b = self._compare(other)
        return dot / float(np.sqrt(float(a) * b)) if a and b else 0.0

    def product(self, other: "TernaryVector") -> "TernaryVector":
        """The signs multiplied element by element.

        Parameters
        ----------
        other : TernaryVector

        Returns
        -------
        TernaryVector
            With scale 1.
        """
        self._check_size(other)
        plus = self.plus & other.plus
        plus |= self.minus & other.minus
        minus = self.plus & other.minus
        minus |= self.minus & other.plus
        return TernaryVector(plus, minus, np.ones(1, self.scale.dtype), self.shape)

    def _compare(self, other) -> tuple[int, int, int, int]:
        self._check_size(other)
        return kernels.compare(self.plus, self.minus, other.plus, other.minus)

    def _check_size(self, other) -> None:
        if not isinstance(other, TernaryVector):
            raise TypeError(f"other must be a TernaryVector, got {type(other).__name__}")
        if other.size != self.size:
            raise ValueError(f"the vectors have {self.size} and {other.size} elements")

    def __repr__(self) -> str:
        blocks = f" in blocks of {self.block}" if self.block else ""
        return f"TernaryVector(shape={self.shape}{blocks}, {self.nbytes} bytes)"


def ternary_quantize(x, rule: str = "twn", *, block: int | None = BLOCK, ratio: float = 0.7, clip: float | None = 2.5,
                     threshold: float = 0.5, seed: int = 0, step: int = 0, name: str = "",
                     out: TernaryVector | None = None) -> TernaryVector:
    r"""Replace each element by -1, 0 or 1 and a scale.

    "twn" keeps the elements with :math:`|x| > 0.7\,\overline{|x|}` at the scale that is best for them, their mean
    :math:`|x|`: deterministic, and the error is least, but not 0 on average, so it wants error feedback. "terngrad"
    keeps an element with probability :math:`|x|/s`, where s is the largest :math:`|x|` after clipping at 2.5 standard
    deviations: the mean over draws is the clipped x. The reference's two rules are here for comparison: both scale by
    the largest :math:`|x|`, "reference_stochastic" does not clip, "reference_deterministic" keeps
    :math:`|x|` above an absolute threshold.

    Parameters
    ----------
    x : array_like
        Of any shape; float64 keeps float64 scales, all else is float32.
    rule : {"twn", "terngrad", "reference_deterministic", "reference_stochastic"}
    block : int or None
        Elements with one scale, a multiple of 64, neighbours in row-major order: of a matrix with so many columns,
        a row. None for one scale for all, at the price of a second pass over memory.
    ratio : float
        Of the threshold to the mean, for "twn".
    clip : float or None
        In standard deviations, for "terngrad".
    threshold : float
        For "reference_deterministic".
    seed, step : int
        With ``name``, what a draw depends on beside the element's place.
    name : str
        Of the tensor.
    out : TernaryVector, optional
        Of as many elements: its planes are written over. It saves a third of the time on vectors larger than the
        caches, which is that of getting fresh memory.

    Returns
    -------
    TernaryVector

    Raises
    ------
    ValueError
        If x holds nan or infinity.

    References
    ----------
    Li and Liu, Ternary Weight Networks, 2016. Wen et al., TernGrad: Ternary Gradients to Reduce Communication in
    Distributed Deep Learning, NeurIPS 2017.

    Examples
    --------
    >>> from gnncy.optim.compression import ternary_quantize
    >>> ternary_quantize([3.0, 0.1, -1.0, 2.0]).unpack()
    array([2.5, 0. , 0. , 2.5])
    """
    check_choice(rule, "rule", RULES)
    if block is not None and check_int(block, "block", 64) % 64:
        raise ValueError(f"block must be a multiple of 64, got {block}")
    ratio, threshold = check_float(ratio, "ratio", 0), check_float(threshold, "threshold", 0)
    clip = None if clip is None else check_float(clip, "clip", above=0)
    array = as_floats(x, "x")
    flat, chunk = array.reshape(-1), block or BLOCK
    n, blocks = flat.size, count_blocks(flat.size, chunk)
    words = -(-n // 64)
    if out is None:
        plus, minus = (aligned_empty(words, np.uint64) for _ in range(2))
    elif isinstance(out, TernaryVector) and out.size == n:
        plus, minus = out.plus, out.minus
    else:
        raise ValueError(f"out must be a TernaryVector of {n} elements, got {out!r}")
    level = np.empty(blocks, flat.dtype)  # thresholds, or the limits of draws
    scale = np.empty(blocks, flat.dtype)
    stats = np.empty((blocks, 3))
    sums, kept = np.empty(blocks), np.empty((blocks, 2))
    ends = np.minimum(chunk * np.arange(1, blocks + 1), n)
    counts = np.diff(ends, prepend=0)
    key = derive(seed, "ternary", step, name)

    def look(a, b):
        if rule == "twn":
            kernels.sum_abs(a, b, chunk, flat, sums)
        else:
            kernels.moments(a, b, chunk, flat, stats)

    def decide(part, whole):
        """The level of the blocks of ``part``, their sums added up if one scale is for ``whole``."""
        if rule == "twn":
            total, count = sums[part], counts[part]
            level[part] = ratio * (total.sum() / count.sum() if whole else total / count)
            return
        total, squares, top = (stats[part, k] for k in range(3))
        count = counts[part]
        if whole:
            total, squares, top, count = total.sum(), squares.sum(), top.max(initial=0), count.sum()
        scale[part] = top
        if rule == "terngrad" and clip is not None:
            mean = total / count
            sigma = np.sqrt(np.maximum(squares / count - mean * mean, 0))
            scale[part] = np.where(sigma > 0, np.minimum(clip * sigma, top), top)
        level[part] = threshold if rule == "reference_deterministic" else scale[part]

    def take(a, b):
        if rule in ("twn", "reference_deterministic"):
            kernels.pack(a, b, chunk, flat, level, plus, minus, kept)
        else:
            kernels.draw(a, b, chunk, flat, level, key, plus, minus)

    everything = slice(0, blocks)
    with np.errstate(invalid="ignore", over="ignore"):
        if block is None:
            over_blocks(n, chunk, look)
            if n:
                decide(everything, whole=True)
            over_blocks(n, chunk, take)
        elif rule == "twn":
            over_blocks(n, chunk, lambda a, b: kernels.pack_above_mean(a, b, chunk, flat, ratio, sums, plus, minus,
                                                                       kept))
        else:
            def piece(a, b):
                look(a, b)
                decide(slice(a, b), whole=False)
                take(a, b)
            over_blocks(n, chunk, piece)
        seen = sums if rule == "twn" else stats[:, 1]
        if not np.isfinite(seen).all():
            bad = int((~np.isfinite(flat)).sum())
            raise ValueError(f"x contains inf or nan values ({bad} of {n}) or is too large to be summed; leave such "
                             "a step out")
        if rule == "twn":
            total, count = kept.T if block else kept.sum(axis=0, keepdims=True).T
            scale = np.divide(total, count, out=np.zeros(len(count)), where=count > 0).astype(flat.dtype)
        elif block is None:
            scale = scale[:1] if n else np.zeros(1, flat.dtype)
    return TernaryVector(plus, minus, scale, array.shape, block)


def as_floats(x, name: str) -> np.ndarray:
    """A native C-contiguous float32 array of any shape, float64 if it was; not checked for nan."""
    array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}")
    wide = array.dtype.kind == "f" and array.dtype.itemsize == 8
    return np.asarray(array, dtype=np.float64 if wide else np.float32, order="C")


def count_blocks(n: int, block: int) -> int:
    return -(-n // block)


def over_blocks(n: int, block: int, work) -> None:
    """Call ``work(first, last)`` for pieces of the blocks of ``n`` elements."""
    run_pieces(work, count_blocks(n, block), max(1, _PIECE // block))
