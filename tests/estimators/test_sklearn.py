import warnings

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn", reason="needs gnncy[sklearn]")

from sklearn.base import clone  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

import gnncy  # noqa: E402

EXPECTED = {
    "check_fit_idempotent": "transform takes the square adjacency of a whole graph, not rows of one",
    "check_dtype_object": "arrays of objects are refused, not converted",
    "check_methods_subset_invariance": "transductive: a node's embedding depends on the other nodes",
    "check_methods_sample_order_invariance": "the minibatches of another order of nodes are others",
}


# We have scikit-learn's manners without inheriting from it, which it only warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Estimator GraphEncoder does not inherit")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    every_check = parametrize_with_checks([gnncy.GraphEncoder(2, max_epochs=1, random_state=0)],
                                          expected_failed_checks=lambda estimator: EXPECTED)
    # before scikit-learn 1.9 a generator, which would warn while pytest draws from it
    every_check = pytest.mark.parametrize(every_check.args[0], list(every_check.args[1]), **every_check.kwargs)


@every_check
def test_scikit_learn_s_own_checks(estimator, check):
    check(estimator)


def test_clone_and_parameters():
    model = gnncy.GraphEncoder(7, temperature=0.3, n_neighbors=(4,))
    twin = clone(model)
    assert twin is not model and twin.get_params() == model.get_params()
    with pytest.raises(ValueError, match="Invalid parameter 'depth'"):
        model.set_params(depth=3)


def test_in_a_pipeline():
    data = gnncy.datasets.make_sbm(300, 3, n_features=16, feature_noise=1.0, seed=0)
    model = gnncy.GraphEncoder(4, max_epochs=1, random_state=0)
    pipeline = make_pipeline(model, LogisticRegression(C=100)).fit(data.adjacency, data.labels)
    assert pipeline.score(data.adjacency, data.labels) > 0.5


def test_grid_search_slices_the_adjacency_on_both_axes():
    data = gnncy.datasets.make_sbm(120, 2, n_features=4, seed=0)
    seen = []

    class Recorder(gnncy.GraphEncoder):
        def __init__(self, n_components=2, random_state=0):
            super().__init__(n_components, max_epochs=1, random_state=random_state)

        def fit(self, X, y=None, *, features=None):
            seen.append((X.shape, features.shape))
            return super().fit(X, y, features=features)

        def score(self, X, y=None):
            return 0.0

    GridSearchCV(Recorder(), {"n_components": [2, 3]}, cv=2, refit=False).fit(data.adjacency, features=data.features)
    assert set(seen) == {((60, 60), (60, 4))}
    assert np.isfinite(data.features).all()
