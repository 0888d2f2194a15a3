import warnings

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn", reason="needs gnncy[sklearn]")

from sklearn.base import clone, is_classifier  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

import gnncy  # noqa: E402

SQUARE = "X is the square adjacency of a whole graph, not rows of one"
PAIRS = "fit takes a graph, prediction pairs of its nodes"
EXPECTED = {
    "NodeClassifier": {
        "check_dtype_object": "arrays of objects are refused, not converted",
        "check_classifiers_classes": "-1 marks a node without a label",
        "check_classifiers_multilabel_representation_invariance": SQUARE,
        "check_classifiers_multilabel_output_format_predict": SQUARE,
        "check_classifiers_multilabel_output_format_predict_proba": SQUARE,
        "check_fit_idempotent": SQUARE,
        "check_methods_subset_invariance": SQUARE,
        "check_methods_sample_order_invariance": "the minibatches of another order of nodes are others",
        "check_sample_weight_equivalence_on_dense_data": "a node of weight 0 is still a neighbour of others",
    },
    "LinkPredictor": {name: PAIRS for name in (
        "check_fit_score_takes_y", "check_n_features_in_after_fitting", "check_estimators_dtypes",
        "check_pipeline_consistency", "check_estimators_nan_inf", "check_estimator_sparse_array",
        "check_estimator_sparse_matrix", "check_estimators_pickle", "check_f_contiguous_array_estimator",
        "check_methods_sample_order_invariance", "check_methods_subset_invariance", "check_dict_unchanged",
        "check_fit_idempotent", "check_fit2d_predict1d",
    )} | {"check_dtype_object": "arrays of objects are refused, not converted"},
}

# We have scikit-learn's manners without inheriting from it, which it only warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Estimator .* does not inherit")

with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    every_check = parametrize_with_checks(
        [gnncy.NodeClassifier(8, max_epochs=2, random_state=0), gnncy.LinkPredictor(random_state=0)],
        expected_failed_checks=lambda estimator: EXPECTED[type(estimator).__name__])
    every_check = pytest.mark.parametrize(every_check.args[0], list(every_check.args[1]), **every_check.kwargs)


@every_check
def test_scikit_learn_s_own_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def data():
    return gnncy.datasets.make_sbm(240, 3, n_features=16, feature_noise=1.0, seed=0)


@pytest.mark.parametrize("model", [gnncy.NodeClassifier(7, dropout=0.3, n_neighbors=(4,)), gnncy.LinkPredictor(C=2.0)])
def test_clone_parameters_and_the_unfitted_state(model, data):
    twin = clone(model)
    assert twin is not model and twin.get_params() == model.get_params()
    with pytest.raises(ValueError, match="Invalid parameter 'depth'"):
        model.set_params(depth=3)
    with pytest.raises(NotFittedError, match="is not fitted yet") as error:
        model.predict(data.adjacency)
    assert isinstance(error.value, gnncy.NotFittedError)


def test_a_classifier_by_its_tags_and_in_a_pipeline(data):
    model = gnncy.NodeClassifier(8, max_epochs=2, random_state=0)
    assert is_classifier(model)
    pipeline = make_pipeline(model).fit(data.adjacency, data.labels)
    assert pipeline.score(data.adjacency, data.labels) > 0.5


def test_a_search_over_the_whole_graph_by_validation_nodes(data):
    everything = np.arange(240)
    labels = np.where(everything < 120, data.labels, -1)
    search = GridSearchCV(gnncy.NodeClassifier(8, max_epochs=2, random_state=0), {"dropout": [0.1, 0.5]},
                          cv=[(everything, everything)], scoring=lambda model, X, y: model.validation_score_)
    search.fit(data.adjacency, labels, features=data.features)
    assert search.best_score_ == max(search.cv_results_["mean_test_score"]) > 0.5
    assert search.best_estimator_.transduction_.shape == (240,)
