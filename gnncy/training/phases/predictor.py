"""Gradients predicted from true ones of earlier steps, and how good the predictions were."""
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from gnncy._check import check_float
from gnncy._random import stream
from gnncy._threads import run_pieces
from gnncy.optim.optimizer import all_finite
from gnncy.training.phases.config import PredictionConfig

_PIECE = 1 << 14  # elements of a sum that one thread takes at a time
_SAMPLE = 1 << 15  # elements by which gradients are compared, at most
_MEASURED = 5  # measurements that the gate looks at


class Quality(NamedTuple):
    """How a prediction compared with the true gradient of the same step.

    Attributes
    ----------
    correlation : float
        Cosine of the angle between them.
    relative_error : float
        Norm of the difference over that of the true gradient; predicting nothing has 1.
    horizon : float
        Steps since the last true gradient then known.
    """

    correlation: float
    relative_error: float
    horizon: float


class GradientPredictor:
    r"""Predicts the next gradients of named parameters from the last true ones.

    Every prediction is a sum :math:`a \sum_k c_k g_k` of recorded gradients. The method gives the numbers
    :math:`c_k`; h is the time since the last record, in steps:

    =================== ================================================================================================
    ``"last"``          :math:`g_n`
    ``"momentum"``      :math:`g_n + \mu h \, (g_n - g_{n-1}) / (t_n - t_{n-1})`
    ``"least_squares"`` :math:`b + v h`, where b and v minimise
                        :math:`\sum_k \delta^{t_n - t_k} \lVert g_k - b - v (t_k - t_n) \rVert^2`
    ``"low_rank"``      linear in features of the minibatch, :math:`\varphi`: the least squares map from the recorded
                        features to the recorded gradients, in the leading directions of the former
    =================== ================================================================================================

    Whenever a true gradient is recorded, the prediction for its very step is first compared with it. This costs no
    prediction: norms and cosines come from inner products of the recorded gradients, of more than 32,768 elements by a
    fixed random sample of so many. They give the gate (``min_correlation``) and the trust a, an average of
    :math:`\langle p, g\rangle / \langle p, p\rangle` within 0..1.

    Parameters
    ----------
    shapes : dict of tuple
        Shape of each parameter, by name.
    config : PredictionConfig, optional
    dtype : {float32, float64}

    Attributes
    ----------
    trust : float
        a, 1 until something was measured.
    quality : list of Quality
        The last measurements, oldest first.
    recorded : int
        True gradients so far.

    References
    ----------
    Ciosek, Felicioni and Elenter Litwin, Linear Gradient Prediction with Control Variates, arXiv 2511.05187, 2025
    (``"low_rank"``, here for minibatches in place of samples).

    Examples
    --------
    A gradient that changes linearly is predicted exactly, whatever the distance:

    >>> import numpy as np
    >>> from gnncy.training.phases import GradientPredictor, PredictionConfig
    >>> predictor = GradientPredictor({"w": (2,)}, PredictionConfig(correction_weight=0))
    >>> for time in (0, 1, 4):
    ...     _ = predictor.record({"w": np.array([time, 10 - time], np.float32)}, time)
    >>> predictor.predict(7)["w"].round(3)
    array([7., 3.], dtype=float32)
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], config: PredictionConfig | None = None,
                 dtype=np.float32):
        self.config = PredictionConfig() if config is None else config
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        if not self.shapes:
            raise ValueError("shapes is empty: a predictor needs at least one parameter")
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype must be float32 or float64, got {self.dtype}")
        self._size = sum(math.prod(shape) for shape in self.shapes.values())
        self._sample = None if self._size <= _SAMPLE else np.sort(
            stream(0, "elements").integers(0, self._size, _SAMPLE))
        self.reset()

    def reset(self) -> None:
        """Forget all gradients and measurements."""
        slots = self.config.capacity + 1  # one is written while the others are compared with it
        self._gradients = np.zeros((slots, self._size), self.dtype)
        self._samples = self._gradients if self._sample is None else np.zeros((slots, _SAMPLE), self.dtype)
        self._products = np.zeros((slots, slots))  # inner products of the samples
        self._features: np.ndarray | None = None
        self._times: list[float] = []
        self._slots: list[int] = []  # of the recorded gradients, oldest first
        self.trust = 1.0
        self.quality: list[Quality] = []
        self.recorded = 0

    # -- record and predict

    def record(self, gradients: Mapping[str, np.ndarray], time: float, features=None) -> Quality | None:
        """Take the true gradients of a step; the measured quality of what would have been predicted for it.

        Parameters
        ----------
        gradients : dict of array
            Of all parameters.
        time : float
            When: the number of the step, later than the last.
        features : array, optional
            For ``"low_rank"``: what describes the minibatch, of the same size each time. Its gradient must be nearly
            linear in them, for instance the gradient of the last layer.

        Returns
        -------
        Quality or None
            None of the first gradient.
        """
        time = check_float(time, "time")
        if self._times and time <= self._times[-1]:
            raise ValueError(f"time must be later than that of the last record, {self._times[-1]:g}, got {time:g}")
        features = self._check_features(features)
        free = next(slot for slot in range(len(self._gradients)) if slot not in self._slots)
        self._write(gradients, self._gradients[free])
        if not all_finite([self._gradients[free]]):
            self._gradients[free] = 0  # every row takes part in sums, those not in use with weight 0
            raise ValueError("the gradients contain inf or nan values; lower the learning rate, or leave this step out")
        products = self._multiply(free)
        self._products[free] = self._products[:, free] = products
        found = self._measure(time, features, free) if self._slots else None
        self._slots.append(free)
        self._times.append(time)
        if features is not None:
            if self._features is None:
                self._features = np.zeros((len(self._gradients), features.size), self.dtype)
            self._features[free] = features
        del self._slots[:-self.config.capacity], self._times[:-self.config.capacity]
        self.recorded += 1
        return found

    def predict(self, time: float, features=None, control: tuple | None = None) -> dict[str, np.ndarray]:
        """The gradients at a later time, already scaled by the trust.

        Parameters
        ----------
        time : float
            When; not before the last record.
        features : array, optional
            For ``"low_rank"``: of the minibatch.
        control : (dict of array, array), optional
            For ``"low_rank"``: true gradients and features of a random part of the minibatch. The prediction is then
            unbiased, see :func:`control_variate`.

        Returns
        -------
        dict of array
        """
        features = self._check_features(features)
        if control is None:
            return self._combine(self.trust * self._coefficients(time, features))
        if self.config.method != "low_rank":
            raise ValueError(f"control is for method='low_rank', whose prediction depends on the minibatch; that of "
                             f"{self.config.method!r} does not, and would cancel out")
        true, part = control
        # The prediction is linear in the features: that of the difference is the difference of two predictions.
        change = self._combine(self.trust * self._coefficients(time, features - self._check_features(part)))
        self._check_names(true)
        for name, prediction in change.items():
            prediction += true[name]
        return change

    def coefficients(self, time: float, features=None) -> np.ndarray:
        """The weights of the recorded gradients, oldest first, in a prediction that is not scaled.

        Parameters
        ----------
        time : float
            When; not before the last record.
        features : array, optional
            For ``"low_rank"``.

        Returns
        -------
        array of float64
        """
        return self._coefficients(time, self._check_features(features))

    # -- the gate

    @property
    def correlation(self) -> float | None:
        """The smaller of the newest and the mean of the last five measured cosines; None before the first."""
        if not self.quality:
            return None
        return min(self.quality[-1].correlation, sum(q.correlation for q in self.quality) / len(self.quality))

    @property
    def relative_error(self) -> float | None:
        """The mean of the last five measured relative errors; None before the first."""
        return sum(q.relative_error for q in self.quality) / len(self.quality) if self.quality else None

    def should_compute_full(self, time: float) -> bool:
        """Whether a step needs its true gradient: nothing known, too far away, or predictions too bad.

        Parameters
        ----------
        time : float

        Returns
        -------
        bool
        """
        if not self._times:
            return True
        if self.config.horizon is not None and time - self._times[-1] > self.config.horizon:
            return True
        if self.config.min_correlation is None:
            return False
        correlation = self.correlation
        return correlation is None or correlation < self.config.min_correlation

    # -- persistence

    def state_dict(self) -> dict:
        """What predictions and measurements depend on.

        Returns
        -------
        dict
            Of arrays, and of numbers ready for JSON.
        """
        # Rows stand where they stood: the order in which a sum is taken is part of its bits.
        arrays = {"gradients": self._gradients.copy(), "products": self._products.copy()}
        if self._features is not None:
            arrays["features"] = self._features.copy()
        return arrays | {"slots": list(self._slots), "times": list(self._times), "trust": self.trust,
                         "recorded": self.recorded, "quality": [list(q) for q in self.quality]}

    def load_state_dict(self, state: dict) -> None:
        """Go on from where a :meth:`state_dict` was taken.

        Parameters
        ----------
        state : dict
            Of a predictor with the same shapes and configuration.
        """
        gradients = np.asarray(state["gradients"])
        if gradients.shape != self._gradients.shape or gradients.dtype != self.dtype:
            raise ValueError(f"the state holds {len(gradients) - 1} gradients of {gradients.shape[-1]} elements and "
                             f"{gradients.dtype}; this predictor holds {self.config.capacity} of {self._size} and "
                             f"{self.dtype}")
        self.reset()
        self._gradients[...], self._products[...] = gradients, state["products"]
        if self._sample is not None:
            self._samples[...] = gradients[:, self._sample]
        if "features" in state:
            self._features = np.array(state["features"], self.dtype)
        self._slots, self._times = list(state["slots"]), [float(time) for time in state["times"]]
        self.trust, self.recorded = float(state["trust"]), int(state["recorded"])
        self.quality = [Quality(*q) for q in state["quality"]]

    # -- the arithmetic

    def _coefficients(self, time: float, features: np.ndarray | None) -> np.ndarray:
        if not self._times:
            raise ValueError("there is no recorded gradient to predict from: record one first")
        time = check_float(time, "time")
        times = np.array(self._times)
        ahead = time - times[-1]
        if ahead < 0:
            raise ValueError(f"time must not be before the last record at {times[-1]:g}, got {time:g}")
        if self.config.method == "low_rank":
            return self._linear_map(features)
        if self.config.method == "momentum" and len(times) > 1:
            share = self.config.momentum * ahead / (times[-1] - times[-2])
            return np.array([-share, 1 + share])
        if self.config.method == "least_squares" and len(times) > 1:
            return _line(times - times[-1], ahead, self.config.decay, self.config.ridge)
        last = np.zeros(len(times))
        last[-1] = 1
        return last

    def _linear_map(self, features: np.ndarray | None) -> np.ndarray:
        if self._features is None or features is None:
            raise ValueError("method='low_rank' predicts from features: record and predict with features")
        known = self._features[self._slots].astype(np.float64)
        values, vectors = np.linalg.eigh(known @ known.T)
        keep = values[-self.config.rank:] > 1e-10 * max(values[-1], 0.0)
        values, vectors = values[-self.config.rank:][keep], vectors[:, -self.config.rank:][:, keep]
        if not len(values):
            return np.zeros(len(known))
        return vectors @ ((vectors.T @ (known @ features)) / (values + self.config.ridge * values[-1]))

    def _measure(self, time: float, features: np.ndarray | None, free: int) -> Quality:
        c = self._coefficients(time, features)
        own = float(c @ self._products[np.ix_(self._slots, self._slots)] @ c)
        both, true = float(c @ self._products[self._slots, free]), float(self._products[free, free])
        own = max(own, 0.0)
        correlation = both / math.sqrt(own * true) if own > 0 and true > 0 else float(own == true)
        error = math.sqrt(max(true - 2 * self.trust * both + self.trust**2 * own, 0.0) / true) if true > 0 else float(
            own > 0)
        ideal = min(max(both / own, 0.0), 1.0) if own > 0 else 1.0
        self.trust += self.config.correction_weight * (ideal - self.trust)
        found = Quality(min(max(correlation, -1.0), 1.0), error, time - self._times[-1])
        self.quality = [*self.quality, found][-_MEASURED:]
        return found

    def _multiply(self, slot: int) -> np.ndarray:
        """Inner products of all samples with one, summed in float64 over fixed pieces."""
        if self._sample is not None:
            np.take(self._gradients[slot], self._sample, out=self._samples[slot])
        whole = self._samples.shape[1]
        pieces = [slice(start, start + _PIECE) for start in range(0, whole, _PIECE)]
        parts = [self._samples[:, piece] @ self._samples[slot, piece] for piece in pieces]
        return np.array(parts, np.float64).sum(axis=0)

    def _combine(self, coefficients: np.ndarray) -> dict[str, np.ndarray]:
        weights = np.zeros(len(self._gradients), self.dtype)
        weights[self._slots] = coefficients
        out = np.empty(self._size, self.dtype)
        run_pieces(lambda start, stop: np.matmul(weights, self._gradients[:, start:stop], out=out[start:stop]),
                   self._size, _PIECE)
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), self._split(out),
                                                                         strict=True)}

    def _write(self, gradients: Mapping[str, np.ndarray], row: np.ndarray) -> None:
        self._check_names(gradients)
        for name, part in zip(self.shapes, self._split(row), strict=True):
            part[:] = np.reshape(gradients[name], -1)

    def _split(self, row: np.ndarray) -> Iterator[np.ndarray]:
        start = 0
        for shape in self.shapes.values():
            stop = start + math.prod(shape)
            yield row[start:stop]
            start = stop

    def _check_names(self, gradients: Mapping[str, np.ndarray]) -> None:
        if gradients.keys() != self.shapes.keys():
            differ = sorted(gradients.keys() ^ self.shapes.keys())
            raise ValueError(f"gradients must have the names that the predictor was made for; different: "
                             f"{', '.join(map(str, differ))}")
        for name, shape in self.shapes.items():
            if np.shape(gradients[name]) != shape:
                raise ValueError(f"the gradient of {name} must have shape {shape}, got {np.shape(gradients[name])}")

    def _check_features(self, features) -> np.ndarray | None:
        if self.config.method != "low_rank":
            if features is not None:
                raise ValueError(f"features are for method='low_rank', not {self.config.method!r}")
            return None
        if features is None:
            raise ValueError("method='low_rank' predicts from features: record and predict with features")
        features = np.asarray(features, self.dtype).reshape(-1)
        if self._features is not None and features.size != self._features.shape[1]:
            raise ValueError(f"features must have {self._features.shape[1]} elements as those recorded, got "
                             f"{features.size}")
        return features


def _line(times: np.ndarray, ahead: float, decay: float, ridge: float) -> np.ndarray:
    """Weights of the values at ``times`` (the last is 0) in their least squares line at ``ahead``."""
    w = decay ** -times
    a, b, c = w.sum(), w @ times, w @ times**2 + ridge
    determinant = a * c - b * b
    if determinant <= 1e-12 * a * c:  # all others are too old to count
        return (times == 0).astype(np.float64)
    return w * (c - b * times + (a * times - b) * ahead) / determinant
