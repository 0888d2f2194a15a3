"""The operations of the tape: forward and backward side by side, each followed by the function that users call."""
import numpy as np

from gnncy import _linalg, graph
from gnncy._check import check_float, check_int
from gnncy._kernels import elementwise, rows
from gnncy._threads import run_pieces
from gnncy.nn.tensor import Operation, Tensor

__all__ = ["add", "affine", "aggregate", "concatenate", "divide", "dropout", "elu", "exp", "l2_normalise", "layer_norm",
           "leaky_relu", "log", "log_softmax", "logsumexp", "matmul", "mean", "multiply", "negative", "prelu", "relu",
           "reshape", "sigmoid", "subtract", "sum", "take", "tanh", "transpose"]

_PIECE = 1 << 16  # elements that one thread takes at a time; a multiple of 4, see the dropout kernel
_ROWS = 1024


def _unbroadcast(grad: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum a gradient over the axes along which ``shape`` was broadcast."""
    if grad.shape == shape:
        return grad
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and grad.shape[i] != 1)
    return grad.sum(axis=stretched, keepdims=True) if stretched else grad


def _elementwise(kernel, inputs, *scalars) -> np.ndarray:
    """Run a flat kernel over fixed pieces of arrays of one shape and dtype."""
    flat = [np.ascontiguousarray(x).reshape(-1) for x in inputs]
    out = np.empty(inputs[0].shape, inputs[0].dtype)
    flat_out = out.reshape(-1)

    def piece(start, stop):
        kernel(*(x[start:stop] for x in flat), *scalars, flat_out[start:stop])

    run_pieces(piece, flat_out.size, _PIECE)
    return out


def _rowwise(kernel, *arrays) -> None:
    """Run a row kernel over fixed pieces of rows."""
    run_pieces(lambda start, stop: kernel(*(x[start:stop] for x in arrays)), len(arrays[0]), _ROWS)


def _matrix(x: np.ndarray) -> np.ndarray:
    """All axes but the last made one."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


# -- arithmetic --------------------------------------------------------------------------------------------------------

class Add(Operation):
    def forward(self, a, b):
        self.save(a.shape, b.shape)
        return a + b

    def backward(self, grad):
        a, b = self.saved
        return _unbroadcast(grad, a), _unbroadcast(grad, b)


def add(a, b) -> Tensor:
    """``a + b`` with broadcasting."""
    return Add.apply(a, b)


class Subtract(Operation):
    def forward(self, a, b):
        self.save(a.shape, b.shape)
        return a - b

    def backward(self, grad):
        a, b = self.saved
        return _unbroadcast(grad, a), _unbroadcast(-grad, b) if self.needs[1] else None


def subtract(a, b) -> Tensor:
    """``a - b`` with broadcasting."""
    return Subtract.apply(a, b)


class Multiply(Operation):
    def forward(self, a, b):
        self.save(a, b)
        return a * b

    def backward(self, grad):
        a, b = self.saved
        return (_unbroadcast(grad * b, a.shape) if self.needs[0] else None,
                _unbroadcast(grad * a, b.shape) if self.needs[1] else None)


def multiply(a, b) -> Tensor:
    """``a * b``, element by element, with broadcasting."""
    return Multiply.apply(a, b)


class Divide(Operation):
    def forward(self, a, b):
        out = a / b
        self.save(a.shape, b, out)
        return out

    def backward(self, grad):
        shape, b, out = self.saved
        by_a = grad / b
        return (_unbroadcast(by_a, shape) if self.needs[0] else None,
                _unbroadcast(-by_a * out, b.shape) if self.needs[1] else None)


def divide(a, b) -> Tensor:
    """``a / b``, element by element, with broadcasting."""
    return Divide.apply(a, b)


class Negative(Operation):
    def forward(self, x):
        return -x

    def backward(self, grad):
        return -grad,


def negative(x) -> Tensor:
    """``-x``."""
    return Negative.apply(x)


class Matmul(Operation):
    def forward(self, a, b):
        self.save(a if self.needs[1] else None, b if self.needs[0] else None)
        return _linalg.matmul(a, b)

    def backward(self, grad):
        a, b = self.saved
        return (_linalg.matmul(grad, b.T) if self.needs[0] else None,
                _linalg.matmul_rows(a, grad) if self.needs[1] else None)


def matmul(a, b) -> Tensor:
    """``a @ b`` for two matrices; the gradients are ``G b.T`` and ``a.T G``."""
    _check_matrices(a, b)
    return Matmul.apply(a, b)


def _shape(x) -> tuple[int, ...]:
    return x.shape if isinstance(x, Tensor) else np.shape(x)


def _check_matrices(a, b) -> None:
    left, right = _shape(a), _shape(b)
    if len(left) != 2 or len(right) != 2:
        raise ValueError(f"matmul needs two matrices, got shapes {left} and {right}; reshape first")
    if left[1] != right[0]:
        raise ValueError(f"matmul needs as many columns on the left as rows on the right, got shapes {left} "
                         f"and {right}")


class Affine(Operation):
    def forward(self, x, weight, bias):
        self.save(x if self.needs[1] else None, weight if self.needs[0] else None)
        out = _linalg.matmul(x, weight)
        out += bias
        return out

    def backward(self, grad):
        x, weight = self.saved
        return (_linalg.matmul(grad, weight.T) if self.needs[0] else None,
                _linalg.matmul_rows(x, grad) if self.needs[1] else None,
                grad.sum(axis=0) if self.needs[2] else None)


def affine(x, weight, bias) -> Tensor:
    """``x @ weight + bias`` without a second array for the sum."""
    _check_matrices(x, weight)
    return Affine.apply(x, weight, bias)


# -- shape -------------------------------------------------------------------------------------------------------------

class Transpose(Operation):
    def forward(self, x, axes):
        self.save(None if axes is None else np.argsort(axes))
        return np.transpose(x, axes)

    def backward(self, grad):
        return np.transpose(grad, self.saved[0]),


def transpose(x, axes=None) -> Tensor:
    """Axes in the order ``axes``, reversed by default; a view."""
    return Transpose.apply(x, axes=axes)


class Reshape(Operation):
    def forward(self, x, shape):
        self.save(x.shape)
        return x.reshape(shape)

    def backward(self, grad):
        return grad.reshape(self.saved[0]),


def reshape(x, shape) -> Tensor:
    """The same elements in another shape."""
    return Reshape.apply(x, shape=shape)


class Take(Operation):
    def forward(self, x, index):
        self.save(x.shape, index)
        return x[index]

    def backward(self, grad):
        shape, index = self.saved
        out = np.zeros(shape, grad.dtype)
        if isinstance(index, np.ndarray) and index.ndim == 1 and index.dtype.kind in "iu":
            width = out[0].size if len(out) else 0
            rows.scatter_add(np.ascontiguousarray(grad).reshape(len(index), width),
                             index.astype(np.intp) % max(len(out), 1), out.reshape(len(out), width))
        elif _is_basic(index):
            out[index] = grad
        else:
            np.add.at(out, index, grad)
        return out,


def _is_basic(index) -> bool:
    return all(isinstance(i, (int, slice, np.integer)) or i is None or i is Ellipsis
               for i in (index if isinstance(index, tuple) else (index,)))


def take(x, index) -> Tensor:
    """``x[index]``: slices, or rows by an array of ids; gradients of a row taken twice add up."""
    if isinstance(index, list):
        index = np.asarray(index)
    return Take.apply(x, index=index)


class Concatenate(Operation):
    def forward(self, *arrays, axis):
        self.save(axis, np.cumsum([x.shape[axis] for x in arrays])[:-1])
        return np.concatenate(arrays, axis)

    def backward(self, grad):
        axis, places = self.saved
        return tuple(np.split(grad, places, axis))


def concatenate(tensors, axis: int = 0) -> Tensor:
    """Tensors joined along an existing axis."""
    return Concatenate.apply(*tensors, axis=axis)


# -- reductions --------------------------------------------------------------------------------------------------------

def _expand(grad: np.ndarray, shape, axis, keepdims: bool) -> np.ndarray:
    """Put back the axes that a reduction took away, as a read-only view."""
    if axis is not None and not keepdims:
        grad = np.expand_dims(grad, axis)
    return np.broadcast_to(grad, shape)


class Sum(Operation):
    def forward(self, x, axis, keepdims):
        self.save(x.shape)
        return x.sum(axis=axis, keepdims=keepdims)

    def backward(self, grad):
        return _expand(grad, self.saved[0], self.options["axis"], self.options["keepdims"]),


def sum(x, axis=None, keepdims: bool = False) -> Tensor:
    """Sum over ``axis``, or over all."""
    return Sum.apply(x, axis=axis, keepdims=keepdims)


class Mean(Operation):
    def forward(self, x, axis, keepdims):
        out = x.mean(axis=axis, keepdims=keepdims)
        self.save(x.shape, np.size(out) / x.size)
        return out

    def backward(self, grad):
        shape, share = self.saved
        return _expand(grad * grad.dtype.type(share), shape, self.options["axis"], self.options["keepdims"]),


def mean(x, axis=None, keepdims: bool = False) -> Tensor:
    """Mean over ``axis``, or over all; an empty one is refused."""
    if 0 in _shape(x):
        raise ValueError(f"mean of an empty Tensor of shape {_shape(x)} is not defined")
    return Mean.apply(x, axis=axis, keepdims=keepdims)


class LogSumExp(Operation):
    def forward(self, x, axis, keepdims):
        top = x.max(axis=axis, keepdims=True)
        e = np.exp(x - top)
        total = e.sum(axis=axis, keepdims=True)
        self.save(e / total)
        out = top + np.log(total)
        return out if keepdims else np.squeeze(out, axis)

    def backward(self, grad):
        softmax, = self.saved
        return softmax * _expand(grad, softmax.shape, self.options["axis"], self.options["keepdims"]),


def logsumexp(x, axis: int = -1, keepdims: bool = False) -> Tensor:
    """``log sum exp x`` along ``axis``, safe for large ``x``."""
    return LogSumExp.apply(x, axis=axis, keepdims=keepdims)


class LogSoftmax(Operation):
    def forward(self, x, axis):
        shifted = x - x.max(axis=axis, keepdims=True)
        out = shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))
        self.save(out)
        return out

    def backward(self, grad):
        out, = self.saved
        return grad - np.exp(out) * grad.sum(axis=self.options["axis"], keepdims=True),


def log_softmax(x, axis: int = -1) -> Tensor:
    """``x - logsumexp(x)`` along ``axis``."""
    return LogSoftmax.apply(x, axis=axis)


# -- activations -------------------------------------------------------------------------------------------------------

class Relu(Operation):
    def forward(self, x):
        out = _elementwise(elementwise.relu, (x,))
        self.save(out)
        return out

    def backward(self, grad):
        return _elementwise(elementwise.relu_grad, (self.saved[0], grad)),


def relu(x) -> Tensor:
    """``max(x, 0)``; its gradient at 0 is 0."""
    return Relu.apply(x)


class LeakyRelu(Operation):
    def forward(self, x, slope):
        out = _elementwise(elementwise.leaky_relu, (x,), slope)
        self.save(out)
        return out

    def backward(self, grad):
        return _elementwise(elementwise.leaky_relu_grad, (self.saved[0], grad), self.options["slope"]),


def leaky_relu(x, slope: float = 0.01) -> Tensor:
    """``x`` where positive, else ``slope x``."""
    return LeakyRelu.apply(x, slope=check_float(slope, "slope", above=0))


class Elu(Operation):
    def forward(self, x, alpha):
        out = _elementwise(elementwise.elu, (x,), alpha)
        self.save(out)
        return out

    def backward(self, grad):
        return _elementwise(elementwise.elu_grad, (self.saved[0], grad), self.options["alpha"]),


def elu(x, alpha: float = 1.0) -> Tensor:
    """``x`` where positive, else ``alpha (exp(x) - 1)`` (Clevert et al., ICLR 2016)."""
    return Elu.apply(x, alpha=check_float(alpha, "alpha", above=0))


class Prelu(Operation):
    def forward(self, x, slope):
        self.save(x, slope)
        return np.where(x > 0, x, slope * x)

    def backward(self, grad):
        x, slope = self.saved
        positive = x > 0
        return (np.where(positive, grad, slope * grad) if self.needs[0] else None,
                _unbroadcast(np.where(positive, 0, grad * x), slope.shape) if self.needs[1] else None)


def prelu(x, slope) -> Tensor:
    """Leaky ReLU with a learned ``slope``, one for all or one per column (He et al., ICCV 2015)."""
    return Prelu.apply(x, slope)


class Tanh(Operation):
    def forward(self, x):
        out = np.tanh(x)
        self.save(out)
        return out

    def backward(self, grad):
        out, = self.saved
        return grad * (1 - out * out),


def tanh(x) -> Tensor:
    """Hyperbolic tangent."""
    return Tanh.apply(x)


class Sigmoid(Operation):
    def forward(self, x):
        e = np.exp(-np.abs(x))
        out = np.where(x < 0, e, 1) / (1 + e)
        self.save(out)
        return out

    def backward(self, grad):
        out, = self.saved
        return grad * out * (1 - out),


def sigmoid(x) -> Tensor:
    """``1 / (1 + exp(-x))``, safe for large ``x`` of either sign."""
    return Sigmoid.apply(x)


class Exp(Operation):
    def forward(self, x):
        out = np.exp(x)
        self.save(out)
        return out

    def backward(self, grad):
        return grad * self.saved[0],


def exp(x) -> Tensor:
    """``e ** x``."""
    return Exp.apply(x)


class Log(Operation):
    def forward(self, x):
        self.save(x)
        return np.log(x)

    def backward(self, grad):
        return grad / self.saved[0],


def log(x) -> Tensor:
    """Natural logarithm."""
    return Log.apply(x)


class Dropout(Operation):
    # The mask is not kept: backward draws it again from the key.
    def forward(self, x, p, key):
        return self._masked(x)

    def backward(self, grad):
        return self._masked(grad),

    def _masked(self, x):
        flat = np.ascontiguousarray(x).reshape(-1)
        out = np.empty(x.shape, x.dtype)
        flat_out = out.reshape(-1)
        key = self.options["key"]
        threshold = round(self.options["p"] * 65536)
        scale = 65536 / (65536 - threshold) if threshold < 65536 else 0.0

        def piece(start, stop):
            elementwise.dropout(flat[start:stop], key, start, threshold, scale, flat_out[start:stop])

        run_pieces(piece, flat.size, _PIECE)
        return out


def dropout(x, p: float = 0.5, *, key: int, training: bool = True) -> Tensor:
    """Set elements to 0 with probability ``p`` and multiply the others by ``1 / (1 - p)`` (Srivastava et al., 2014).

    Whether an element stays depends on ``key`` and its place alone, so any thread count and any repetition drops the
    same. ``p`` is rounded to a multiple of 2**-16.
    """
    p = check_float(p, "p", 0, 1)
    key = check_int(key, "key", 0, 2**64 - 1)
    if not training or p == 0:
        return x if isinstance(x, Tensor) else Tensor(x)
    return Dropout.apply(x, p=p, key=key)


# -- rows --------------------------------------------------------------------------------------------------------------

class L2Normalise(Operation):
    def forward(self, x):
        flat = _matrix(x)
        out, norm = np.empty_like(flat), np.empty(len(flat), x.dtype)
        _rowwise(rows.normalise, flat, out, norm)
        self.save(out, norm)
        return out.reshape(x.shape)

    def backward(self, grad):
        unit, norm = self.saved
        out = np.empty_like(unit)
        _rowwise(rows.normalise_grad, unit, norm, _matrix(grad), out)
        return out.reshape(grad.shape),


def l2_normalise(x) -> Tensor:
    """Rows (along the last axis) of length 1; a row shorter than 1e-12 becomes zero, and its gradient is zero."""
    return L2Normalise.apply(x)


class LayerNorm(Operation):
    def forward(self, x, weight, bias, eps):
        flat = _matrix(x)
        unit, inverse = np.empty_like(flat), np.empty(len(flat), x.dtype)
        run_pieces(lambda a, b: rows.standardise(flat[a:b], eps, unit[a:b], inverse[a:b]), len(flat), _ROWS)
        self.save(unit, inverse, weight)
        return (unit * weight + bias).reshape(x.shape)

    def backward(self, grad):
        unit, inverse, weight = self.saved
        flat = _matrix(grad)
        by_x = None
        if self.needs[0]:
            by_x = np.empty_like(unit)
            _rowwise(rows.standardise_grad, unit, inverse, flat * weight, by_x)
            by_x = by_x.reshape(grad.shape)
        return by_x, (flat * unit).sum(axis=0), flat.sum(axis=0)


def layer_norm(x, weight, bias, eps: float = 1e-5) -> Tensor:
    """Rows (along the last axis) of mean 0 and variance 1, times ``weight``, plus ``bias`` (Ba et al., 2016)."""
    return LayerNorm.apply(x, weight, bias, eps=check_float(eps, "eps", above=0))


# -- graphs ------------------------------------------------------------------------------------------------------------

class Aggregate(Operation):
    def forward(self, x, adjacency, **how):
        self.save(adjacency, how)
        return graph.aggregate(adjacency, x, **how)

    def backward(self, grad):
        adjacency, how = self.saved
        return graph.aggregate_grad(adjacency, grad, **how),


def aggregate(adjacency, x, reduce: str = "mean", weighted: bool = False) -> Tensor:
    """Sum or mean of the neighbours' rows, for a ``csr_array`` or a sampled block of shape (targets, sources)."""
    return Aggregate.apply(x, adjacency=adjacency, reduce=reduce, weighted=weighted)
