"""Other shapes of the same elements, parts of them, and several joined."""
import numpy as np

from gnncy._kernels import rows
from gnncy.nn.tensor import Operation, Tensor


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
