"""Sums, means, maxima and normalised exponentials along an axis."""
import numpy as np

from gnncy.nn.ops._pieces import shape_of
from gnncy.nn.tensor import Operation, Tensor


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
    if 0 in shape_of(x):
        raise ValueError(f"mean of an empty Tensor of shape {shape_of(x)} is not defined")
    return Mean.apply(x, axis=axis, keepdims=keepdims)


class Max(Operation):
    def forward(self, x, axis, keepdims):
        top = x.max(axis=axis, keepdims=True)
        self.save(x == top)
        return top if keepdims else np.squeeze(top, axis)

    def backward(self, grad):
        reached, = self.saved
        axis = self.options["axis"]
        share = reached / reached.sum(axis=axis, keepdims=True, dtype=grad.dtype)
        return share * _expand(grad, reached.shape, axis, self.options["keepdims"]),


def max(x, axis=None, keepdims: bool = False) -> Tensor:
    """Largest element along ``axis``, or of all; elements that tie share the gradient equally (``torch.amax``)."""
    if 0 in shape_of(x):
        raise ValueError(f"max of an empty Tensor of shape {shape_of(x)} is not defined")
    return Max.apply(x, axis=axis, keepdims=keepdims)


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


class Softmax(Operation):
    def forward(self, x, axis):
        out = np.exp(x - x.max(axis=axis, keepdims=True))
        out /= out.sum(axis=axis, keepdims=True)
        self.save(out)
        return out

    def backward(self, grad):
        out, = self.saved
        return out * (grad - (grad * out).sum(axis=self.options["axis"], keepdims=True)),


def softmax(x, axis: int = -1) -> Tensor:
    """``exp(x)`` over its sum along ``axis``, safe for large ``x``."""
    return Softmax.apply(x, axis=axis)
