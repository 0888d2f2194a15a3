"""Clipping of gradients, in place."""
import math
from collections.abc import Iterable

import numpy as np

from gnncy._check import check_float
from gnncy._kernels import optimizer as kernels
from gnncy.nn import Tensor
from gnncy.optim.optimizer import norm, run_over


def clip_grad_norm_(params, max_norm: float, *, error_if_nonfinite: bool = False) -> float:
    r"""Scale all gradients together so that their Euclidean norm is at most ``max_norm``.

    They are multiplied by :math:`\min(1, c / (\lVert g \rVert + 10^{-6}))`. The norm is summed in float64 over fixed
    pieces: the same bits at any number of threads. ``Adam(..., max_norm=c)`` does the same inside its step, for one
    pass over the gradients in place of three.

    Parameters
    ----------
    params : Tensor, array or an iterable of them
        Of a Tensor, its ``grad`` is changed, if it has one; an array is a gradient itself.
    max_norm : float
        c, above 0.
    error_if_nonfinite : bool
        Raise where the norm is nan or infinite. Default: leave such gradients as they are, for the optimizer to
        refuse or skip.

    Returns
    -------
    float
        The norm before.

    References
    ----------
    Pascanu, Mikolov and Bengio, On the difficulty of training recurrent neural networks, ICML 2013.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim import clip_grad_norm_
    >>> grads = [np.array([3.0]), np.array([0.0, 4.0])]
    >>> clip_grad_norm_(grads, 1.0)
    5.0
    >>> grads[1].round(3)
    array([0. , 0.8])
    """
    max_norm = check_float(max_norm, "max_norm", above=0)
    grads = _gradients(params)
    total = norm(grads)
    if not math.isfinite(total):
        if error_if_nonfinite:
            raise ValueError(f"the norm of the gradients is {total}; nothing was changed. Lower the learning rate, or "
                             "pass error_if_nonfinite=False")
        return total
    scale = max_norm / (total + 1e-6)
    if scale < 1:
        run_over(grads, lambda pieces: [kernels.multiply(start, stop, grads[i], scale) for i, start, stop in pieces])
    return total


def clip_grad_value_(params, clip_value: float) -> None:
    """Move every element of the gradients between ``-clip_value`` and ``clip_value``; nan stays.

    Parameters
    ----------
    params : Tensor, array or an iterable of them
        Of a Tensor, its ``grad`` is changed, if it has one; an array is a gradient itself.
    clip_value : float
        Above 0.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.optim import clip_grad_value_
    >>> grad = np.array([0.1, -3.0])
    >>> clip_grad_value_(grad, 0.5)
    >>> grad
    array([ 0.1, -0.5])
    """
    clip_value = check_float(clip_value, "clip_value", above=0)
    grads = _gradients(params)
    run_over(grads, lambda pieces: [kernels.clamp(start, stop, grads[i], clip_value) for i, start, stop in pieces])


def _gradients(params) -> list[np.ndarray]:
    """The gradients in one dimension, views of those to be changed."""
    if isinstance(params, (Tensor, np.ndarray)):
        params = [params]
    if not isinstance(params, Iterable):
        raise TypeError(f"params must be Tensors or arrays, got {type(params).__name__}")
    out = []
    for i, param in enumerate(params):
        grad = param.grad if isinstance(param, Tensor) else param
        if grad is None:
            continue
        if not isinstance(grad, np.ndarray):
            raise TypeError(f"params[{i}] must be a Tensor or an array, got {type(param).__name__}")
        native = grad.dtype in (np.float32, np.float64) and grad.dtype.isnative
        if not (native and grad.flags.c_contiguous and grad.flags.writeable):
            raise ValueError(f"the gradient of params[{i}] is changed in place and must be a writable, C-contiguous "
                             f"float32 or float64 array; got {grad.dtype} of shape {grad.shape}")
        out.append(grad.reshape(-1))
    return out
