"""Rows and columns normalised."""
import numpy as np

from gnncy._check import check_float
from gnncy._kernels import rows
from gnncy._threads import run_pieces
from gnncy.nn.ops._pieces import ROWS, as_matrix, column_sums, run_rowwise, shape_of
from gnncy.nn.tensor import Operation, Tensor, repeated_pass


class L2Normalise(Operation):
    def forward(self, x):
        flat = as_matrix(x)
        out, norm = np.empty_like(flat), np.empty(len(flat), x.dtype)
        run_rowwise(rows.normalise, flat, out, norm)
        self.save(out, norm)
        return out.reshape(x.shape)

    def backward(self, grad):
        unit, norm = self.saved
        out = np.empty_like(unit)
        run_rowwise(rows.normalise_grad, unit, norm, as_matrix(grad), out)
        return out.reshape(grad.shape),


def l2_normalise(x) -> Tensor:
    """Rows (along the last axis) of length 1; a row shorter than 1e-12 becomes zero, and its gradient is zero."""
    return L2Normalise.apply(x)


def _scaled(unit: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    out = np.empty_like(unit)

    def piece(start, stop):
        part = out[start:stop]
        np.multiply(unit[start:stop], weight, out=part)
        part += bias

    run_pieces(piece, len(unit), ROWS)
    return out


class LayerNorm(Operation):
    def forward(self, x, weight, bias, eps):
        flat = as_matrix(x)
        unit, inverse = np.empty_like(flat), np.empty(len(flat), x.dtype)
        run_pieces(lambda a, b: rows.standardise(flat[a:b], eps, unit[a:b], inverse[a:b]), len(flat), ROWS)
        self.save(unit, inverse, weight)
        return _scaled(unit, weight, bias).reshape(x.shape)

    def backward(self, grad):
        unit, inverse, weight = self.saved
        flat = as_matrix(grad)
        by_x = None
        if self.needs[0]:
            out = np.empty_like(unit)
            run_pieces(lambda a, b: rows.standardise_grad(unit[a:b], inverse[a:b], flat[a:b] * weight, out[a:b]),
                       len(flat), ROWS)
            by_x = out.reshape(grad.shape)
        return by_x, column_sums(flat, unit), column_sums(flat)


def layer_norm(x, weight, bias, eps: float = 1e-5) -> Tensor:
    """Rows (along the last axis) of mean 0 and variance 1, times ``weight``, plus ``bias`` (Ba et al., 2016)."""
    return LayerNorm.apply(x, weight, bias, eps=check_float(eps, "eps", above=0))


class BatchNorm(Operation):
    def forward(self, x, weight, bias, running_mean, running_var, training, momentum, eps):
        n, mean, var = len(x), running_mean, running_var
        if training:
            mean = column_sums(x) / n
        unit = np.empty(x.shape, x.dtype)
        run_pieces(lambda a, b: np.subtract(x[a:b], mean, out=unit[a:b], casting="same_kind"), n, ROWS)
        if training:
            var = column_sums(unit, unit) / n
            if running_mean is not None and not repeated_pass():
                running_mean += momentum * (mean - running_mean)
                running_var += momentum * (var * (n / (n - 1)) - running_var)
        inverse = (1 / np.sqrt(var + eps)).astype(x.dtype)
        run_pieces(lambda a, b: np.multiply(unit[a:b], inverse, out=unit[a:b]), n, ROWS)
        self.save(unit, inverse, weight)
        return _scaled(unit, weight, bias)

    def backward(self, grad):
        unit, inverse, weight = self.saved
        n, by_weight, by_bias = len(grad), column_sums(grad, unit), column_sums(grad)
        by_x = None
        if self.needs[0]:
            scale, by_x = weight * inverse, np.empty_like(unit)
            training = self.options["training"]

            def piece(start, stop):
                part = by_x[start:stop]
                part[...] = grad[start:stop]
                if training:
                    part -= unit[start:stop] * (by_weight / n)
                    part -= by_bias / n
                part *= scale

            run_pieces(piece, n, ROWS)
        return by_x, by_weight, by_bias


def batch_norm(x, weight, bias, running_mean=None, running_var=None, *, training: bool = False, momentum: float = 0.1,
               eps: float = 1e-5) -> Tensor:
    """Columns of mean 0 and variance 1, times ``weight``, plus ``bias`` (Ioffe and Szegedy, ICML 2015).

    While ``training``, the batch's own mean and variance are used, and the running ones (arrays, if given) move
    towards them in place by ``momentum``; else the running ones are used.
    """
    shape = shape_of(x)
    if len(shape) != 2:
        raise ValueError(f"batch_norm needs a matrix, got shape {shape}; reshape first")
    if training and shape[0] < 2:
        raise ValueError(f"batch_norm needs at least 2 rows while training, got {shape[0]}; call eval() first")
    if not training and (running_mean is None or running_var is None):
        raise ValueError("batch_norm needs running_mean and running_var outside training")
    return BatchNorm.apply(x, weight, bias, running_mean=running_mean, running_var=running_var, training=training,
                           momentum=check_float(momentum, "momentum", 0, 1), eps=check_float(eps, "eps", above=0))
