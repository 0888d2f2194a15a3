"""Phases in the Trainer and in GraphEncoder, with the compressors of optim, and what they save."""
import dataclasses
import functools
import json

import numpy as np
import pytest

import gnncy
from gnncy import nn, optim
from gnncy.datasets import make_sbm
from gnncy.errors import StorageError
from gnncy.training import GraphLoader, SnapshotFolder, Trainer
from gnncy.training.phases import PhaseConfig, PhaseTrainer, PredictionConfig
from phase_loop import Sum, config
from stopping import Stop, StopAfter

DATA = make_sbm(240, 3, n_features=10, seed=1)
OPEN = config(2, 3, 2, prediction=PredictionConfig(min_correlation=None))


def fit(phases, folder=None, *, stop=None, epochs=4, n_jobs=1, **options):
    model = nn.MLP([10, 16, 4], rng=0)
    made = Trainer(model, optim.Adam(model.parameters(), lr=1e-3), seed=0, max_epochs=epochs,
                   snapshots=None if folder is None else SnapshotFolder(folder), phases=phases,
                   callbacks=[] if stop is None else [StopAfter(stop)], **options)
    try:
        made.fit(GraphLoader(DATA.adjacency, DATA.features, batch_size=40), n_jobs=n_jobs)
    except Stop:
        return None, made
    return np.concatenate([p.data.ravel() for p in model.parameters()]).tobytes(), made


def test_the_trainer_predicts_between_minibatches():
    bits, made = fit(OPEN)
    stats = made.phases.get_stats()
    assert made.total_steps == 24 == stats.backward_passes
    assert stats.predict_steps > 20 and made.history[-1]["predicted_steps"] == stats.predict_steps
    assert set(made.optimizer.counts) == {stats.total_steps}
    assert stats.forward_seconds > 0 and stats.backward_seconds > 0
    assert bits != fit(None)[0]


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}])
def test_behind_a_shut_gate_nothing_is_changed(options):
    shut = PhaseConfig(prediction=PredictionConfig(min_correlation=1.0))
    bits, made = fit(shut, **options)
    assert made.phases.get_stats().predict_steps == 0
    assert bits == fit(None, **options)[0]


def test_predicted_steps_are_clipped_as_true_ones_are():
    _, made = fit(OPEN, clip_value=1e-9)
    assert all(np.abs(p.grad).max() <= 1e-9 for p in made.optimizer.params)


def test_bits_do_not_depend_on_threads():
    assert fit(OPEN, n_jobs=1)[0] == fit(OPEN, n_jobs=3)[0]


@pytest.mark.parametrize("stop", [7, 13])  # a snapshot an epoch, of six minibatches
@pytest.mark.parametrize("extra", [{}, {"gradient_accumulation": 4}, {"gradient_accumulation": 4, "accumulator": Sum}])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(tmp_path, stop, extra):
    phases = dataclasses.replace(OPEN, **extra)
    assert fit(phases, tmp_path, stop=stop, epochs=3)[0] is None
    assert fit(phases, tmp_path, epochs=3)[0] == fit(phases, epochs=3)[0]


def test_a_checkpoint_without_phases_is_refused(tmp_path):
    fit(None, tmp_path, stop=7)
    with pytest.raises(StorageError, match="no state of phases"):
        fit(OPEN, tmp_path)


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda p: optim.Adam([p.data]), ValueError, "an optimizer of Tensors"),
    (lambda p: optim.Adam([p, nn.Tensor(np.ones(3), requires_grad=True)]), ValueError, "of one dtype"),
])
def test_optimizers_that_cannot_be_phased(make, error, message):
    model = nn.Linear(2, 2, rng=0)
    with pytest.raises(error, match=message):
        Trainer(model, make(next(iter(model.parameters()))), seed=0, max_epochs=1, phases=OPEN)


def test_arguments_of_phases():
    model = nn.Linear(2, 2, rng=0)
    new = functools.partial(Trainer, model, optim.Adam(model.parameters()), seed=0, max_epochs=1)
    with pytest.raises(TypeError, match="phases must be a PhaseConfig, got dict"):
        new(phases={})
    with pytest.raises(ValueError, match="loop of your own"):
        new(phases=PhaseConfig(prediction=PredictionConfig("low_rank")))
    with pytest.raises(TypeError, match="phases must be None or a PhaseConfig"):
        gnncy.GraphEncoder(4, phases=3).fit(DATA.adjacency, features=DATA.features)


def test_graph_encoder_takes_phases(tmp_path):
    def embed(phases, **options):
        encoder = gnncy.GraphEncoder(4, max_epochs=6, random_state=0, phases=phases, **options)
        return encoder.fit_transform(DATA.adjacency, features=DATA.features).tobytes(), encoder

    plain, _ = embed(None)
    opened, encoder = embed(OPEN)
    assert opened != plain and encoder.history_[-1]["predicted_steps"] > 0
    assert "gradient history" in encoder.plan_.stages["train"]
    assert embed(PhaseConfig(prediction=PredictionConfig(min_correlation=1.0)))[0] == plain
    with pytest.raises(Stop):
        embed(OPEN, checkpoint_dir=tmp_path, callbacks=[StopAfter(3)])
    with pytest.raises(StorageError, match="another run"):
        embed(None, checkpoint_dir=tmp_path)
    assert embed(OPEN, checkpoint_dir=tmp_path)[0] == opened
    assert json.dumps(OPEN.describe())


def test_predictable_gradients_need_fewer_backward_passes():
    """S2-5: with short phases and a line through eight gradients, a quadratic at low noise: 27 where plain takes 33."""
    eigenvalues, target = np.geomspace(0.01, 1, 60), 0.021

    def passes(settings, rate, seed):
        rng = np.random.default_rng(seed)
        start = rng.standard_normal(60)
        x = nn.Tensor(start / np.linalg.norm(start) * np.sqrt(60), requires_grad=True)
        optimizer = optim.SGD([x], lr=rate)
        phases, below = None if settings is None else PhaseTrainer.of(optimizer, settings), []

        def update():
            optimizer.step()
            below.append(0.5 * eigenvalues @ x.data**2 <= target)

        for count in range(1, 200):
            x.grad = eigenvalues * x.data + 0.01 * rng.standard_normal(60)
            if phases is None:
                update()
            else:
                phases.drive([x], 0.0, update)
            if any(below):
                return count
        return 200

    def best(settings):
        return min(np.mean([passes(settings, rate, seed) for seed in range(5)]) for rate in (1.0, 1.3, 1.5, 1.7, 1.9))

    ours = PhaseConfig(2, 2, 2, PredictionConfig(min_correlation=None, correction_weight=0.0))
    plain, predicted, gated = best(None), best(ours), best(PhaseConfig())
    assert predicted <= 27 / 33 * plain
    assert predicted <= 27
    assert gated <= 1.05 * plain


# -- with the compressors of optim


@pytest.fixture
def compression():
    from gnncy.optim import compression
    return compression


@pytest.mark.parametrize("name", ["TernaryCompressor", "TopKCompressor", "SignCompressor", "PowerSGDCompressor",
                                  "CountSketchCompressor", "VSAGradientCompressor"])
def test_compressors_serve_in_the_loop_and_resume(tmp_path, compression, name):
    """S2-P1."""
    phases = dataclasses.replace(OPEN, compressor=getattr(compression, name)())
    expected, made = fit(phases, epochs=2)
    stats = made.phases.get_stats()
    assert 0 < stats.bytes_compressed < stats.bytes_full
    assert fit(phases, tmp_path, stop=7, epochs=2)[0] is None
    assert fit(phases, tmp_path, epochs=2)[0] == expected


def test_the_ternary_accumulator_serves_in_the_loop_and_resumes(tmp_path, compression):
    phases = dataclasses.replace(OPEN, gradient_accumulation=4, accumulator=compression.TernaryGradientAccumulator)
    expected, made = fit(phases)
    assert made.phases.get_stats().backward_passes == 24 and made.phases.accumulator.bits > 1
    assert fit(phases, tmp_path, stop=13)[0] is None
    assert fit(phases, tmp_path)[0] == expected
