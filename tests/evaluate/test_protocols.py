import numpy as np
import pytest

from gnncy.datasets import make_sbm
from gnncy.evaluate import CollapseWarning, embedding_health, linear_probe, protocol_split, roc_auc, run_protocol


@pytest.fixture(scope="module")
def data():
    return make_sbm(1500, 4, n_features=16, feature_noise=2.0, seed=0)


def test_random_runs_have_their_own_splits_and_the_same_for_any_method(data):
    result = run_protocol(data.features, data.labels, runs=3)
    other = run_protocol(data.features[:, :8], data.labels, runs=3)
    assert result.protocol == "random" and len(set(result.values())) > 1
    assert all(len(run.predictions) == 1200 for run in result.runs + other.runs)
    assert result.mean == pytest.approx(np.mean(result.values()))
    assert result.std == pytest.approx(np.std(result.values(), ddof=1))
    assert str(result) == f"{100 * result.mean:.1f} ± {100 * result.std:.1f}"
    again = run_protocol(data.features, data.labels, runs=3, n_jobs=2)
    assert np.array_equal(result.values(), again.values())
    first = linear_probe(data.features, data.labels,
                         protocol_split(data.labels, random_state=_run_seed(0)))
    assert first.accuracy == result.values()[0]


def _run_seed(run):
    from gnncy._random import derive, seed_from
    return derive(seed_from(0), "run", run)


def test_the_public_split_is_one_run_unless_embeddings_are_trained_anew(data):
    one = run_protocol(data.features, data.labels, data.split)
    assert (one.protocol, len(one.runs), one.std) == ("public", 1, 0.0)
    assert one.mean == linear_probe(data.features, data.labels, data.split).accuracy
    seen = []

    def trained(run):
        seen.append(run)
        return data.features + np.random.default_rng(run).normal(size=data.features.shape)

    several = run_protocol(trained, data.labels, data.split, runs=3)
    assert seen == [0, 1, 2] and several.std > 0
    splits = [protocol_split(data.labels, random_state=seed) for seed in range(2)]
    assert len(run_protocol(data.features, data.labels, splits).runs) == 2


def test_planetoid_takes_twenty_of_each_class():
    labels = np.arange(2000) % 5
    labels[::7] = -1
    train, val, test = protocol_split(labels, "planetoid", random_state=1)
    assert np.array_equal(np.bincount(labels[train]), [20] * 5)
    assert (len(val), len(test)) == (500, 1000)
    assert len(np.unique(np.concatenate([train, val, test]))) == 1600
    assert (labels[np.concatenate([train, val, test])] >= 0).all()
    with pytest.raises(ValueError, match="20 of the rarest and 295"):
        protocol_split(labels[:461], "planetoid")


def test_roc_auc_of_two_classes_and_the_choice_of_C_by_it(data):
    labels = (data.labels == 0).astype(int)
    result = linear_probe(data.features, labels, data.split, metric="roc_auc")
    assert result.roc_auc > 0.75
    assert np.isnan(linear_probe(data.features, data.labels, data.split).roc_auc)
    names = np.array(["no", "yes"])[labels]
    assert linear_probe(data.features, names, data.split, metric="roc_auc").roc_auc == result.roc_auc
    found = run_protocol(data.features, labels, runs=2, metric="roc_auc").as_dict()
    assert set(found) == {"protocol", "metric", "runs", "accuracy", "macro_f1", "roc_auc"}
    assert "roc_auc" not in run_protocol(data.features, data.labels, runs=2).as_dict()
    sklearn = pytest.importorskip("sklearn.linear_model")
    rows = data.features / np.linalg.norm(data.features, axis=1, keepdims=True)
    model = sklearn.LogisticRegression(C=2 * result.C, max_iter=500, tol=1e-6).fit(rows[data.split.train],
                                                                             labels[data.split.train])
    margin = model.decision_function(rows[data.split.test])
    assert result.roc_auc == pytest.approx(roc_auc(labels[data.split.test], margin), abs=2e-3)


def test_macro_f1_may_choose_C(data):
    result = run_protocol(data.features, data.labels, data.split, metric="macro_f1")
    assert result.mean == result.runs[0].macro_f1


@pytest.mark.parametrize("change, message", [
    ({"protocol": "public"}, "needs split"), ({"protocol": "random", "split": ([0], [1], [2])}, "leave split out"),
    ({"protocol": "ogb"}, "protocol must be one of"), ({"metric": "f1"}, "metric must be one of"),
    ({"metric": "roc_auc"}, "needs two classes"), ({"runs": 0}, "runs must be at least 1")])
def test_bad_arguments_are_named(data, change, message):
    with pytest.raises(ValueError, match=message):
        run_protocol(data.features, data.labels, **change)


def test_few_labels_are_named():
    with pytest.raises(ValueError, match="at least 10 labelled nodes, there are 3"):
        protocol_split([0, 1, 0, -1])


def test_alignment_is_small_where_neighbours_are_alike(data):
    smoothed = data.adjacency @ data.features + data.features
    alike, raw = embedding_health(smoothed, data.adjacency), embedding_health(data.features, data.adjacency)
    assert alike.alignment < raw.alignment < 2
    assert np.isnan(embedding_health(data.features).alignment)
    u = data.features / np.linalg.norm(data.features, axis=1, keepdims=True)
    row, col = data.adjacency[:60][:, :60].nonzero()
    small = embedding_health(data.features[:60], data.adjacency[:60][:, :60])
    assert small.alignment == pytest.approx(((u[row] - u[col]) ** 2).sum(1).mean(), rel=1e-5)
    with pytest.raises(ValueError, match="adjacency has 1500 nodes, embedding 60 rows"):
        embedding_health(data.features[:60], data.adjacency)


def test_a_nearly_constant_embedding_is_called_collapsed():
    rows = 5 + 0.01 * np.random.default_rng(0).normal(size=(500, 8))
    with pytest.warns(CollapseWarning, match="the embedding has collapsed"):
        assert embedding_health(rows).collapsed
