"""Gradients checked against central differences."""
from collections.abc import Callable, Sequence

import numpy as np

from gnncy.nn.tensor import Tensor


def check_gradient(function: Callable[..., Tensor], inputs: Sequence, *, step: float = 1e-4) -> float:
    """Largest relative error of the gradients of ``function``, against central differences in float64.

    A result with several elements is weighted by fixed irregular numbers and summed.

    Parameters
    ----------
    function : callable
        Takes one Tensor per input and returns a Tensor; must be deterministic.
    inputs : sequence of array_like
        Copied to float64; keep them away from kinks by more than ``2 * step``.
    step : float
        Distance of the four points (error of fourth order), for values of about 1.

    Returns
    -------
    error : float
        The largest over the inputs of ``max|g - d| / max(|g|, |d|)``, the maxima taken over an input's elements;
        under 1e-6 for a right gradient of a smooth function. An input whose gradient is below 1e-9 everywhere counts
        with its absolute error.

    Examples
    --------
    >>> from gnncy import nn
    >>> nn.check_gradient(lambda x, y: (x * y).sum(), [[1.0, 2.0], [3.0, 4.0]]) < 1e-9
    True
    """
    arrays = [np.array(x, np.float64) for x in inputs]
    tensors = [Tensor(x, requires_grad=True) for x in arrays]
    out = function(*tensors)
    weight = np.cos(np.arange(out.size, dtype=np.float64) + 0.5).reshape(out.shape)
    out.backward(weight)

    def value() -> float:
        return float(np.sum(function(*(Tensor(x) for x in arrays)).data * weight))

    worst = 0.0
    for array, tensor in zip(arrays, tensors, strict=True):
        analytic = np.zeros_like(array) if tensor.grad is None else tensor.grad
        numeric = np.empty_like(array)
        for index in np.ndindex(array.shape):
            centre = array[index]
            f = []
            for k in (-2, -1, 1, 2):
                array[index] = centre + k * step
                f.append(value())
            array[index] = centre
            numeric[index] = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step)
        error = np.abs(analytic - numeric).max(initial=0.0)
        size = max(np.abs(analytic).max(initial=0.0), np.abs(numeric).max(initial=0.0))
        worst = max(worst, float(error / size) if size > 1e-9 else float(error))
    return worst
