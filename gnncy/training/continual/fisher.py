"""The diagonal of the Fisher information of a classifier, from the gradients of single samples."""
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from gnncy._check import check_choice, check_ids, check_int
from gnncy._linalg import matmul_rows
from gnncy._random import stream
from gnncy._threads import working_threads
from gnncy.nn import Linear, Module, Parameter, Tensor

METHODS = ("auto", "exact", "sampled", "empirical", "batch")
EXACT_CLASSES = 32  # up to so many, "auto" takes the expectation over all labels
_CHUNK = 1024  # samples that are vectorised at a time
_SAME = 1e-3  # how far a row alone may be from the same row among others, by rounding


def fisher_diagonal(model: Module, inputs, *, method: str = "auto", targets=None, classes=None,
                    logits: Callable | None = None, batch_size: int = 32, seed: int = 0,
                    n_jobs: int | None = None) -> dict[str, np.ndarray]:
    r"""How much the predictions of a classifier depend on each of its parameters.

    .. math:: F_i = \frac1n \sum_x E_y \left(\frac{\partial \log p(y|x)}{\partial\theta_i}\right)^2

    The square is of the gradient of a single sample. A model of :class:`~gnncy.nn.Linear` layers and operations without
    parameters is differentiated for many samples at once; any other one sample after the other.

    Parameters
    ----------
    model : Module
        Called as ``model(x)`` with rows of ``inputs``; gives one row of logits for each. It is put into evaluation mode
        meanwhile.
    inputs : array, shape (n, ...)
        The samples, or with ``logits`` whatever that takes: for instance ids of nodes.
    method : {"auto", "exact", "sampled", "empirical", "batch"}
        Which labels: ``"exact"`` takes each by its predicted probability, ``"sampled"`` draws one by it,
        ``"empirical"`` takes ``targets``. ``"auto"`` is exact up to 32 classes, then sampled. ``"batch"`` is not the
        Fisher information but what is often taken for it: see Notes.
    targets : array of int, shape (n,), optional
        Labels, for ``"empirical"`` and ``"batch"``.
    classes : array of int, optional
        The labels that there are in this task: columns of the logits. All by default.
    logits : callable, optional
        ``logits(inputs[i:j])`` gives a Tensor with a row of logits for each input, in place of ``model(x)``. For a
        model of a graph: of nodes, each with its neighbourhood. For a contrastive loss, which has no labels: the
        similarities of an anchor to its candidates, whose softmax InfoNCE is.
    batch_size : int
        Of ``"batch"``.
    seed : int
        Of the labels drawn. Sample i draws the same one whatever comes beside it.
    n_jobs : int, optional
        Threads; None is 1 (or joblib's or ``GNNCY_NUM_THREADS``'s number), -1 all usable CPUs. The result does not
        depend on it.

    Returns
    -------
    dict of str to ndarray
        For each trained parameter an array of its shape, float64.

    Notes
    -----
    ``"batch"`` squares the gradient of the mean log-likelihood of ``batch_size`` samples with their ``targets``. Its
    expectation is :math:`F/B + (1 - 1/B)(E g)^2` with :math:`g` the gradient of one sample: in a well trained model,
    where :math:`E g` is near 0, it is too small by a factor of the batch size, and the strength of a penalty must be so
    much larger. ``"empirical"`` vanishes as the fit becomes perfect, since then each sample's gradient does.

    References
    ----------
    J. Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 2017.
    F. Kunstner, L. Balles, P. Hennig, Limitations of the empirical Fisher approximation, NeurIPS 2019.
    G. van de Ven, On the computation of the Fisher information in continual learning, ICLR blog post 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from gnncy import nn
    >>> from gnncy.training.continual import fisher_diagonal
    >>> model = nn.Linear(2, 2, rng=0)
    >>> model.weight.data[...] = 0  # both classes have probability 1/2: the variance of a label is 1/4
    >>> fisher_diagonal(model, np.array([[1.0, 0.0], [3.0, 0.0]], np.float32))["weight"].round(3)
    array([[1.25, 1.25],
           [0.  , 0.  ]])
    """
    check_choice(method, "method", METHODS)
    check_int(batch_size, "batch_size", 1)
    inputs = inputs if isinstance(inputs, np.ndarray) else np.asarray(inputs)
    if inputs.ndim == 0 or len(inputs) == 0:
        raise ValueError("inputs must hold at least one sample")
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameters that are trained")
    forward = logits or (lambda rows: model(Tensor(rows)))
    with working_threads(n_jobs), _set_aside(model, parameters.values()):
        labels = _Labels(forward(inputs[:1]), method, len(inputs), targets, classes, seed)
        if method == "batch":
            return _of_batches(forward, inputs, parameters, labels, batch_size)
        layers = _linear_layers(model) if logits is None else None
        squares = {name: np.zeros(p.shape) for name, p in parameters.items()}
        if layers is not None and _rows_stand_alone(forward, inputs[:2]) and _vectorised(
                forward, inputs, layers, {id(p): squares[name] for name, p in parameters.items()}, labels):
            return {name: total / len(inputs) for name, total in squares.items()}
        squares = {name: np.zeros(p.shape) for name, p in parameters.items()}
        for i in range(len(inputs)):
            for number in range(labels.passes):
                _backward(forward, inputs, i, i + 1, labels, number)
                for name, parameter in parameters.items():
                    if parameter.grad is not None:
                        squares[name] += parameter.grad.astype(np.float64) ** 2
                        parameter.grad = None
        return {name: total / len(inputs) for name, total in squares.items()}


class _Labels:
    """The labels that a Fisher information is over: gradients of their log-likelihoods by the logits.

    What is squared is multiplied by the root of its weight.
    """

    def __init__(self, example: Tensor, method: str, n: int, targets, classes, seed: int):
        if example.ndim != 2 or len(example) != 1:
            raise ValueError(f"logits must have one row for each input, got shape {example.shape} for one")
        columns = example.shape[1]
        self.classes = np.arange(columns) if classes is None else np.unique(check_ids(classes, columns, "classes"))
        if len(self.classes) < 2:
            raise ValueError(f"there must be at least 2 classes to tell apart, got {len(self.classes)}")
        self.passes, self.draws, self.given = 1, None, None
        if method in ("empirical", "batch"):
            if targets is None:
                raise ValueError(f"method={method!r} needs targets, the labels of inputs")
            given = check_ids(targets, columns, "targets")
            if len(given) != n:
                raise ValueError(f"targets must have one label for each of the {n} inputs, got {len(given)}")
            if not np.isin(given, self.classes).all():
                raise ValueError(f"targets must be among classes, got {np.setdiff1d(given, self.classes).tolist()}")
            self.given = np.searchsorted(self.classes, given)
        elif method == "sampled" or method == "auto" and len(self.classes) > EXACT_CLASSES:
            self.draws = stream(seed, "labels").random(n)
        else:
            self.passes = len(self.classes)

    def gradient(self, logits: np.ndarray, start: int, number: int) -> np.ndarray:
        """Of pass ``number`` for the samples from ``start`` on."""
        z = logits[:, self.classes].astype(np.float64)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        rows = np.arange(len(p))
        if self.given is not None:
            label, root = self.given[start:start + len(p)], 1.0
        elif self.draws is not None:
            label = (np.cumsum(p, axis=1)[:, :-1] <= self.draws[start:start + len(p), None]).sum(axis=1)
            root = 1.0
        else:
            label, root = np.full(len(p), number), np.sqrt(p[:, number, None])
        own = -p
        own[rows, label] += 1
        out = np.zeros(logits.shape, logits.dtype)
        out[:, self.classes] = own * root
        return out


@contextmanager
def _set_aside(model: Module, parameters) -> Iterator[None]:
    """The caller's gradients and mode come back as they were."""
    training, grads = model.training, [(p, p.grad) for p in parameters]
    model.eval()
    for parameter, _ in grads:
        parameter.grad = None
    try:
        yield
    finally:
        model.train(training)
        for parameter, grad in grads:
            parameter.grad = grad


def _backward(forward: Callable, inputs: np.ndarray, start: int, stop: int, labels: _Labels, number: int,
              scale: float = 1.0) -> None:
    out = forward(inputs[start:stop])
    if out.ndim != 2 or len(out) != stop - start:
        raise ValueError(f"logits must have one row for each of {stop - start} inputs, got shape {out.shape}")
    out.backward(labels.gradient(out.data, start, number) * out.dtype.type(scale))


def _of_batches(forward, inputs, parameters: dict[str, Parameter], labels: _Labels, size: int) -> dict[str, np.ndarray]:
    squares = {name: np.zeros(p.shape) for name, p in parameters.items()}
    starts = range(0, len(inputs), size)
    for start in starts:
        stop = min(start + size, len(inputs))
        _backward(forward, inputs, start, stop, labels, 0, 1 / (stop - start))
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                squares[name] += parameter.grad.astype(np.float64) ** 2
                parameter.grad = None
    return {name: total / len(starts) for name, total in squares.items()}


def _linear_layers(model: Module) -> list[Linear] | None:
    """The layers of a model all of whose parameters are theirs alone; None for another model."""
    layers = [module for module in model.modules() if type(module) is Linear]
    own = [id(p) for layer in layers for p in layer.parameters()]
    return layers if len(set(own)) == len(own) and set(own) == {id(p) for p in model.parameters()} else None


def _rows_stand_alone(forward: Callable, rows: np.ndarray) -> bool:
    together, alone = forward(rows).data, np.concatenate([forward(rows[i:i + 1]).data for i in range(len(rows))])
    return together.shape == alone.shape and np.allclose(together, alone, rtol=_SAME, atol=_SAME)


def _vectorised(forward, inputs, layers: Sequence[Linear], squares: dict[int, np.ndarray], labels: _Labels) -> bool:
    """Add up squares of the gradients of linear layers; False if these are not called once each, a row a sample.

    The gradient of a sample by a weight is the outer product of the layer's input and the gradient by its output; so
    the sum of their squares is a product of squares.
    """
    for start in range(0, len(inputs), _CHUNK):
        stop = min(start + _CHUNK, len(inputs))
        for number in range(labels.passes):
            with _probes(layers) as seen:
                _backward(forward, inputs, start, stop, labels, number)
            for layer in layers:
                calls = seen[id(layer)]
                if len(calls) != 1 or calls[0][0].shape[:1] != (stop - start,) or calls[0][0].ndim != 2:
                    return False
                x, probe = calls[0]
                grad = np.zeros(probe.shape) if probe.grad is None else probe.grad.astype(np.float64) ** 2
                if id(layer.weight) in squares:
                    squares[id(layer.weight)] += matmul_rows(x.astype(np.float64) ** 2, grad)
                if layer.bias is not None and id(layer.bias) in squares:
                    squares[id(layer.bias)] += grad.sum(axis=0)
    return True


@contextmanager
def _probes(layers: Sequence[Linear]) -> Iterator[dict[int, list]]:
    """Note the input of each call of a layer, and add zeros to its output that the gradient by it is left at."""
    seen: dict[int, list[tuple[np.ndarray, Tensor]]] = {id(layer): [] for layer in layers}

    def watched(layer: Linear) -> Callable:
        def forward(x):
            out = Linear.forward(layer, x)
            probe = Tensor(np.zeros(out.shape, out.dtype), requires_grad=True)
            seen[id(layer)].append((x.data if isinstance(x, Tensor) else np.asarray(x), probe))
            return out + probe
        return forward

    for layer in layers:
        layer.forward = watched(layer)  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        for layer in layers:
            del layer.forward
            for parameter in layer.parameters():
                parameter.grad = None
