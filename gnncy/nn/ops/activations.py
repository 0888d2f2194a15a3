"""Activations, and dropout."""
import numpy as np

from gnncy._check import check_float, check_int
from gnncy._kernels import elementwise
from gnncy._threads import run_pieces
from gnncy.nn.ops._pieces import PIECE, run_elementwise, unbroadcast
from gnncy.nn.tensor import Operation, Tensor


class Relu(Operation):
    def forward(self, x):
        out = run_elementwise(elementwise.relu, (x,))
        self.save(out)
        return out

    def backward(self, grad):
        return run_elementwise(elementwise.relu_grad, (self.saved[0], grad)),


def relu(x) -> Tensor:
    """``max(x, 0)``; its gradient at 0 is 0."""
    return Relu.apply(x)


class LeakyRelu(Operation):
    def forward(self, x, slope):
        out = run_elementwise(elementwise.leaky_relu, (x,), slope)
        self.save(out)
        return out

    def backward(self, grad):
        return run_elementwise(elementwise.leaky_relu_grad, (self.saved[0], grad), self.options["slope"]),


def leaky_relu(x, slope: float = 0.01) -> Tensor:
    """``x`` where positive, else ``slope x``."""
    return LeakyRelu.apply(x, slope=check_float(slope, "slope", above=0))


class Elu(Operation):
    def forward(self, x, alpha):
        out = run_elementwise(elementwise.elu, (x,), alpha)
        self.save(out)
        return out

    def backward(self, grad):
        return run_elementwise(elementwise.elu_grad, (self.saved[0], grad), self.options["alpha"]),


def elu(x, alpha: float = 1.0) -> Tensor:
    """``x`` where positive, else ``alpha (exp(x) - 1)`` (Clevert et al., ICLR 2016)."""
    return Elu.apply(x, alpha=check_float(alpha, "alpha", above=0))


class Gelu(Operation):
    def forward(self, x):
        self.save(x)
        return run_elementwise(elementwise.gelu, (x,))

    def backward(self, grad):
        return run_elementwise(elementwise.gelu_grad, (self.saved[0], grad)),


def gelu(x) -> Tensor:
    """``x`` times the probability that a standard normal number is below ``x`` (Hendrycks and Gimpel, 2016)."""
    return Gelu.apply(x)


class Prelu(Operation):
    def forward(self, x, slope):
        self.save(x, slope)
        return np.where(x > 0, x, slope * x)

    def backward(self, grad):
        x, slope = self.saved
        positive = x > 0
        return (np.where(positive, grad, slope * grad) if self.needs[0] else None,
                unbroadcast(np.where(positive, 0, grad * x), slope.shape) if self.needs[1] else None)


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

        run_pieces(piece, flat.size, PIECE)
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
