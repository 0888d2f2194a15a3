"""Predicted gradients made unbiased by control variates, and when that pays."""
import math
from collections.abc import Mapping

import numpy as np

from gnncy._check import check_float


def control_variate(predicted: Mapping[str, np.ndarray], predicted_part: Mapping[str, np.ndarray],
                    true_part: Mapping[str, np.ndarray], scale: float = 1.0) -> dict[str, np.ndarray]:
    r"""An unbiased gradient of a minibatch of which only a random part went through the backward pass.

    .. math:: \hat g = g_C + a \, (h - h_C)

    h is the prediction for the whole minibatch, :math:`h_C` that for the part C and :math:`g_C` the part's true
    gradient, all of them means over samples. Whatever the prediction, the expectation over the choice of C is the true
    gradient of the minibatch, if the prediction was made without its true gradient.

    Parameters
    ----------
    predicted, predicted_part, true_part : dict of array
        h, :math:`h_C` and :math:`g_C` by parameter.
    scale : float
        a; 1 is best where predictions have the right length, the ratio of covariance and variance otherwise.

    Returns
    -------
    dict of array

    References
    ----------
    Ciosek, Felicioni and Elenter Litwin, Linear Gradient Prediction with Control Variates, arXiv 2511.05187, 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy.training.phases import control_variate
    >>> control_variate({"w": np.array([2.0])}, {"w": np.array([1.5])}, {"w": np.array([1.0])})
    {'w': array([1.5])}
    """
    scale = check_float(scale, "scale")
    if not predicted.keys() == predicted_part.keys() == true_part.keys():
        raise ValueError("predicted, predicted_part and true_part must have the same names")
    return {name: true_part[name] + true_part[name].dtype.type(scale) * (predicted[name] - predicted_part[name])
            for name in true_part}


def break_even(correlation: float, fraction: float, *, forward: float, backward: float, predict: float = 0.0) -> float:
    r"""Cost times variance of control variates, as a share of plain training's: they pay where it is below 1.

    Of n samples, all go forward and a ``fraction`` f backward. With a correlation r between a sample's predicted and
    true gradient, and the best scale, the variance is :math:`1 + (1/f - 1)(1 - r^2)` times that of all true
    gradients, while a step costs :math:`(F + f B + P) / (F + B)` times as much; plain training could spend the same on
    fewer samples, at a variance that is higher in proportion.

    Parameters
    ----------
    correlation : float
        r, in -1..1.
    fraction : float
        f, above 0 and at most 1.
    forward, backward, predict : float
        F, B and P: seconds of a minibatch, as :meth:`PhaseTrainer.get_stats` measures them.

    Returns
    -------
    float

    References
    ----------
    Ciosek, Felicioni and Elenter Litwin, Linear Gradient Prediction with Control Variates, arXiv 2511.05187, 2025.

    Examples
    --------
    >>> from gnncy.training.phases import break_even
    >>> f"{break_even(0.95, 0.25, forward=1.0, backward=2.0):.2f}"
    '0.65'
    >>> f"{break_even(0.4, 0.25, forward=1.0, backward=2.0):.2f}"
    '1.76'
    """
    correlation = check_float(correlation, "correlation", -1, 1)
    fraction = check_float(fraction, "fraction", high=1.0, above=0)
    forward, backward, predict = (check_float(value, name, 0) for value, name in (
        (forward, "forward"), (backward, "backward"), (predict, "predict")))
    if math.isclose(forward + backward, 0.0):
        raise ValueError("forward and backward must not both be 0: there is nothing to save")
    variance = 1 + (1 / fraction - 1) * (1 - correlation**2)
    return variance * (forward + fraction * backward + predict) / (forward + backward)
