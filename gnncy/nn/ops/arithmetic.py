"""Sums, products and quotients with broadcasting, and products of matrices."""
import numpy as np

from gnncy import _linalg
from gnncy.nn.ops._pieces import column_sums, shape_of, unbroadcast
from gnncy.nn.tensor import Operation, Tensor


class Add(Operation):
    def forward(self, a, b):
        self.save(a.shape, b.shape)
        return a + b

    def backward(self, grad):
        a, b = self.saved
        return unbroadcast(grad, a), unbroadcast(grad, b)


def add(a, b) -> Tensor:
    """``a + b`` with broadcasting."""
    return Add.apply(a, b)


class Subtract(Operation):
    def forward(self, a, b):
        self.save(a.shape, b.shape)
        return a - b

    def backward(self, grad):
        a, b = self.saved
        return unbroadcast(grad, a), unbroadcast(-grad, b) if self.needs[1] else None


def subtract(a, b) -> Tensor:
    """``a - b`` with broadcasting."""
    return Subtract.apply(a, b)


class Multiply(Operation):
    def forward(self, a, b):
        self.save(a, b)
        return a * b

    def backward(self, grad):
        a, b = self.saved
        return (unbroadcast(grad * b, a.shape) if self.needs[0] else None,
                unbroadcast(grad * a, b.shape) if self.needs[1] else None)


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
        return (unbroadcast(by_a, shape) if self.needs[0] else None,
                unbroadcast(-by_a * out, b.shape) if self.needs[1] else None)


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


def _check_matrices(a, b) -> None:
    left, right = shape_of(a), shape_of(b)
    if len(left) != 2 or len(right) != 2:
        raise ValueError(f"matmul needs two matrices, got shapes {left} and {right}; reshape first")
    if left[1] != right[0]:
        raise ValueError(f"matmul needs as many columns on the left as rows on the right, got shapes {left} "
                         f"and {right}")


class Affine(Operation):
    def forward(self, x, weight, bias):
        self.save(x if self.needs[1] else None, weight if self.needs[0] else None, bias.shape)
        out = _linalg.matmul(x, weight)
        out += bias
        return out

    def backward(self, grad):
        x, weight, bias = self.saved
        return (_linalg.matmul(grad, weight.T) if self.needs[0] else None,
                _linalg.matmul_rows(x, grad) if self.needs[1] else None,
                unbroadcast(column_sums(grad)[None], bias) if self.needs[2] else None)


def affine(x, weight, bias) -> Tensor:
    """``x @ weight + bias`` without a second array for the sum."""
    _check_matrices(x, weight)
    return Affine.apply(x, weight, bias)


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


class Where(Operation):
    def forward(self, a, b, condition):
        self.save(a.shape, b.shape)
        return np.where(condition, a, b)

    def backward(self, grad):
        a, b = self.saved
        condition = self.options["condition"]
        return (unbroadcast(np.where(condition, grad, 0), a) if self.needs[0] else None,
                unbroadcast(np.where(condition, 0, grad), b) if self.needs[1] else None)


def where(condition, a, b) -> Tensor:
    """``a`` where the bools of ``condition`` are true, else ``b``, with broadcasting."""
    return Where.apply(a, b, condition=np.asarray(condition, bool))
