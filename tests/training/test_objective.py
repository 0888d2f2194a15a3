"""Objective: the gradient of any mixture of losses, and where its weights come from."""
import numpy as np
import pytest

from gnncy import nn
from gnncy.datasets import make_sbm
from gnncy.losses import (
    HardNegativeMiner,
    InfoNCELoss,
    LocalContrastiveLoss,
    MultiObjectiveLoss,
    ReconstructionLoss,
    SpectralRegularization,
)
from gnncy.training import Embedded, GraphLoader, Objective
from gnncy.training.schedules import Settings

DATA = make_sbm(120, 3, n_features=6, seed=1)
X = DATA.features.astype(np.float64)
NOTHING = Settings(None, None, None, None)


def embedded(loader=None, columns=5, graph=DATA.adjacency, gradient=True):
    loader = GraphLoader(graph, X, batch_size=30) if loader is None else loader
    with loader.batches(0) as batches:
        result = next(iter(batches))
    z = np.random.default_rng(0).standard_normal((result.batch.views * len(result.batch.seeds), columns))
    return Embedded(nn.Tensor(z, requires_grad=gradient), result.batch, result.features[:len(result.batch.seeds)],
                    loader, 7)


def squares(given):
    return (given.embeddings * given.embeddings).mean()


LOSSES = {
    "infonce": InfoNCELoss(0.5, symmetric=True),
    "debiased": InfoNCELoss(0.5, prior=0.1, hardness=0.3),
    "local": LocalContrastiveLoss(margin=2.0, negatives=2),
    "spectral": SpectralRegularization("symmetric"),
    "features": ReconstructionLoss("sce"),
    "edges": ReconstructionLoss("adjacency"),
    "own": squares,
}


@pytest.mark.parametrize("loader", [None, {"negatives": HardNegativeMiner("random", 6), "candidates": 10},
                                    {"positives": "views", "augment": lambda x, key: x}])
def test_the_gradient_is_that_of_the_total_by_central_differences(loader):
    given = embedded(loader and GraphLoader(DATA.adjacency, X, batch_size=30, **loader))
    decoder = nn.Linear(5, 6, rng=0, dtype=np.float64)
    objective = Objective(LOSSES, dict(zip(LOSSES, (1, 0.5, 0.3, 0.2, 0.7, 0.4, 0.6), strict=True)), decoder=decoder)
    out = objective(given)
    assert out.total == pytest.approx(sum(objective.balance.weights[k] * v for k, v in out.parts.items()), rel=1e-12)
    by_weight = decoder.weight.grad.copy()
    for array, grad in ((given.embeddings.data, out.gradient), (decoder.weight.data, by_weight)):
        direction = np.random.default_rng(1).standard_normal(array.shape)
        totals = []
        for shift in (1e-5, -2e-5):
            array += shift * direction
            totals.append(objective(given).total)
        array += 1e-5 * direction
        assert (grad * direction).sum() == pytest.approx((totals[0] - totals[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_by_itself_reaches_every_row_that_it_should(name):
    decoder = nn.Linear(5, 6, rng=0, dtype=np.float64) if name == "features" else None
    given = embedded()
    out = Objective({name: LOSSES[name]}, decoder=decoder)(given)
    moved = np.abs(out.gradient).sum(axis=1) > 0
    if name in ("infonce", "debiased"):
        assert moved[given.batch.anchors].all()
    elif name in ("features", "own"):
        assert moved.all()
    assert moved.mean() > 0.5 and out.total == out.parts[name] > 0


def test_settings_win_over_what_was_given():
    # S4-16: temperature, negatives and weights are stored by the reference and never used.
    given = embedded()
    objective = Objective({"infonce": InfoNCELoss(0.5), "own": squares}, {"infonce": 1.0, "own": 0.5})
    plain = objective(given)
    warm = objective(given, NOTHING._replace(temperature=0.9))
    assert warm.parts["infonce"] == pytest.approx(Objective({"infonce": InfoNCELoss(0.9)})(given).total)
    assert warm.parts["own"] == plain.parts["own"] and objective.losses["infonce"].temperature == 0.5
    few = objective(given, NOTHING._replace(n_negatives=3))
    assert few.parts["infonce"] < plain.parts["infonce"]
    heavy = objective(given, NOTHING._replace(loss_weights={"own": 2.0, "absent": 5.0}))
    assert heavy.parts == plain.parts
    assert heavy.total == pytest.approx(plain.parts["infonce"] + 2 * plain.parts["own"])
    np.testing.assert_allclose(heavy.gradient - plain.gradient, 1.5 * 2 * given.embeddings.data
                               / given.embeddings.size, atol=1e-12)
    assert objective.held_out(given) == pytest.approx(plain.total)  # whatever was scheduled


@pytest.mark.parametrize("method", ["uncertainty", "gradnorm"])
def test_weights_are_learned(method):
    given = embedded()
    objective, other = (Objective({"infonce": InfoNCELoss(), "own": squares},
                                  MultiObjectiveLoss({"infonce": 1.0, "own": 1.0}, method)) for _ in range(2))
    for _ in range(20):
        objective(given)
        objective.learn()
    later = objective.balance.factors
    assert later["own"] > 1.1 * later["infonce"]  # it is by far the smaller gradient, and loss
    other.load_state_dict(objective.state_dict())
    assert np.array_equal(other(given).gradient, objective(given).gradient)
    if method == "gradnorm":
        with pytest.raises(ValueError, match="GradNorm learns the weights of the losses: leave loss_weights out"):
            objective(given, NOTHING._replace(loss_weights={"own": 1.0}))


def test_the_decoder_is_part_of_the_state():
    made = [Objective({"features": ReconstructionLoss()}, decoder=nn.Linear(5, 6, rng=rng)) for rng in (0, 1)]
    made[1].load_state_dict(made[0].state_dict())
    assert np.array_equal(made[0].decoder.weight.data, made[1].decoder.weight.data)


def test_a_minibatch_without_edges():
    given = embedded(graph=np.eye(120))
    out = Objective({"infonce": InfoNCELoss(), "spectral": SpectralRegularization(),
                     "local": LocalContrastiveLoss(negatives=1)})(given)
    assert out.parts["spectral"] == out.parts["local"] == 0 and out.total == out.parts["infonce"]


def test_nothing_is_recorded_where_no_gradient_is_wanted():
    given = embedded(gradient=False)
    assert Objective({"infonce": InfoNCELoss()})(given).gradient is None
    assert Objective({"infonce": InfoNCELoss()}).held_out(given) > 0


@pytest.mark.parametrize("arguments, error, text", [
    (({"a": 3},), TypeError, r"losses\['a'\] must be a loss or a function of an Embedded, got int"),
    (({"a": InfoNCELoss(reduction="none")},), ValueError, r"losses\['a'\] must be one number"),
    (({"a": InfoNCELoss()}, {"b": 1.0}), ValueError, "weights must have the names of the losses, a, got b"),
    (({"a": ReconstructionLoss()},), ValueError, "a reconstructs features by a decoder: pass decoder="),
    (({"a": ReconstructionLoss(), "b": ReconstructionLoss("sce")},), ValueError, "a and b both reconstruct features"),
])
def test_bad_input(arguments, error, text):
    with pytest.raises(error, match=text):
        Objective(*arguments)


def test_a_decoder_without_use():
    with pytest.raises(ValueError, match="a decoder is for a ReconstructionLoss of features"):
        Objective(decoder=nn.Linear(2, 2))
