"""Every operation: its value, and its gradient against central differences in float64."""
import numpy as np
import pytest
from scipy import sparse, special

from gnncy import nn
from gnncy._linalg import matmul_rows
from gnncy._threads import working_threads
from gnncy.graph import Block


def data(*shape, seed=0, low=0.1):
    """Numbers of either sign that keep away from 0, where some gradients have a kink."""
    rng = np.random.default_rng([seed, *shape])
    x = rng.uniform(low, 2.0, shape) * rng.choice([-1, 1], shape)
    assert x.size < 3 or np.ptp(x) > 0.1
    return x


BROADCAST = [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((2, 3, 4), (3, 1)), ((4,), (2, 3, 4)), ((3, 4), ()),
             ((), (3, 4)), ((1,), (5,)), ((0, 4), (4,))]


@pytest.mark.parametrize("shapes", BROADCAST, ids=str)
@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "divide"])
def test_arithmetic_reduces_the_gradient_over_broadcast_axes(name, shapes):
    # S4-32: add of the reference has no broadcasting.
    a, b = data(*shapes[0]), data(*shapes[1], seed=1)
    function = getattr(nn, name)
    np.testing.assert_allclose(function(nn.Tensor(a), nn.Tensor(b)).data, getattr(np, name)(a, b))
    assert nn.check_gradient(function, [a, b]) < 1e-6


UNARY = {
    "negative": (nn.negative, np.negative),
    "relu": (nn.relu, lambda x: np.maximum(x, 0)),
    "leaky_relu": (lambda x: nn.leaky_relu(x, 0.2), lambda x: np.where(x > 0, x, 0.2 * x)),
    "elu": (nn.elu, lambda x: np.where(x > 0, x, np.expm1(x))),
    "elu_half": (lambda x: nn.elu(x, 0.5), lambda x: np.where(x > 0, x, 0.5 * np.expm1(x))),
    "gelu": (nn.gelu, lambda x: x * 0.5 * (1 + special.erf(x / np.sqrt(2)))),
    "tanh": (nn.tanh, np.tanh),
    "sigmoid": (nn.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "exp": (nn.exp, np.exp),
    "log": (lambda x: nn.log(x * x), lambda x: np.log(x * x)),
    "transpose": (nn.transpose, np.transpose),
    "sum": (nn.sum, np.sum),
    "mean": (nn.mean, np.mean),
    "sum_rows": (lambda x: nn.sum(x, 0), lambda x: x.sum(0)),
    "mean_last": (lambda x: nn.mean(x, -1, keepdims=True), lambda x: x.mean(-1, keepdims=True)),
    "sum_last": (lambda x: x.sum(-1), lambda x: x.sum(-1)),
    "max": (nn.max, np.max),
    "max_rows": (lambda x: nn.max(x, 0), lambda x: x.max(0)),
    "max_last": (lambda x: nn.max(x, -1, keepdims=True), lambda x: x.max(-1, keepdims=True)),
    "softmax": (nn.softmax, lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
    "softmax_rows": (lambda x: nn.softmax(x, 0), lambda x: np.exp(x) / np.exp(x).sum(0)),
    "logsumexp": (nn.logsumexp, lambda x: np.log(np.exp(x).sum(-1))),
    "logsumexp_rows": (lambda x: nn.logsumexp(x, 0, keepdims=True), lambda x: np.log(np.exp(x).sum(0, keepdims=True))),
    "log_softmax": (nn.log_softmax, lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))),
    "log_softmax_rows": (lambda x: nn.log_softmax(x, 0), lambda x: x - np.log(np.exp(x).sum(0))),
    "l2_normalise": (nn.l2_normalise, lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)),
}


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (5, 17), (2, 3, 4), (7,)], ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_one_argument(name, shape):
    function, reference = UNARY[name]
    x = data(*shape)
    np.testing.assert_allclose(function(nn.Tensor(x)).data, reference(x), rtol=1e-12, atol=1e-14)
    narrow = function(nn.Tensor(x.astype(np.float32)))
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow.data, reference(x), rtol=3e-5, atol=3e-6)
    assert nn.check_gradient(function, [x]) < 1e-6


@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("slopes", [(), (1,), "columns"], ids=str)
def test_prelu(shape, slopes):
    slope = data(*(shape[-1:] if slopes == "columns" else slopes), seed=3)
    x = data(*shape)
    np.testing.assert_allclose(nn.prelu(nn.Tensor(x), slope).data, np.where(x > 0, x, slope * x))
    assert nn.check_gradient(nn.prelu, [x, slope]) < 1e-6


def test_relu_masks_the_gradient_and_shows_nan():
    # S4-32: the reference's ReLU passes the gradient unmasked.
    x = nn.Tensor([-1.0, 0.0, 2.0, -np.inf, np.nan], requires_grad=True)
    y = nn.relu(x)
    np.testing.assert_array_equal(y.data, [0, 0, 2, 0, np.nan])
    y.backward(np.array([np.inf, 1, 1, 1, 1]))
    np.testing.assert_array_equal(x.grad[:4], [0, 0, 1, 0])


def test_sigmoid_and_logsumexp_are_safe_for_large_values():
    x = nn.Tensor([-1000.0, 1000.0], requires_grad=True)
    np.testing.assert_array_equal(nn.sigmoid(x).data, [0, 1])
    assert nn.logsumexp(x).item() == 1000
    np.testing.assert_array_equal(nn.log_softmax(x).data, [-2000, 0])


@pytest.mark.parametrize("shapes", [((3, 4), (4, 5)), ((1, 1), (1, 1)), ((0, 3), (3, 2)), ((7, 1), (1, 9))], ids=str)
def test_matmul_gradient_is_gbt_and_atg(shapes):
    # S4-P4: the reference's matmul has an empty backward.
    a, b = data(*shapes[0]), data(*shapes[1], seed=1)
    assert nn.check_gradient(nn.matmul, [a, b]) < 1e-6
    assert nn.check_gradient(nn.affine, [a, b, data(shapes[1][1], seed=2)]) < 1e-6
    np.testing.assert_allclose(nn.affine(a, nn.Tensor(b), 1.0).data, a @ b + 1)


def test_matmul_saves_and_computes_only_what_is_needed():
    features, weight = nn.Tensor(data(5, 3)), nn.Tensor(data(3, 2), requires_grad=True)
    out = features @ weight
    assert out._node.saved[1] is None  # no gradient to the features, so the weight is not kept
    out.sum().backward()
    assert features.grad is None and weight.grad.shape == (3, 2)


def test_matmul_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"two matrices, got shapes \(3,\) and \(3, 2\)"):
        nn.Tensor(np.ones(3)) @ nn.Tensor(np.ones((3, 2)))
    with pytest.raises(ValueError, match="as many columns on the left"):
        nn.Tensor(np.ones((2, 3))) @ nn.Tensor(np.ones((2, 3)))


@pytest.mark.parametrize("index", [np.array([0, 2, 2, 2, 1]), np.array([-1, 0, -1]), np.array([], np.int64),
                                   [3, 3], slice(1, 3), slice(None, None, -2), 1, (slice(None), 1), (Ellipsis, None, 0),
                                   np.array([True, False, True, False]), (np.array([0, 0, 1]), np.array([1, 1, 2]))],
                         ids=str)
def test_take_adds_the_gradients_of_a_row_taken_twice(index):
    x = data(4, 3)
    np.testing.assert_array_equal(nn.take(nn.Tensor(x), index).data, x[index])
    assert nn.check_gradient(lambda t: t[index], [x]) < 1e-6


def test_take_of_vectors_and_of_three_axes():
    for shape in ((5,), (5, 2, 3)):
        assert nn.check_gradient(lambda t: t[np.array([4, 0, 4])], [data(*shape)]) < 1e-6
    with pytest.raises(IndexError):
        nn.Tensor(np.ones(3))[np.array([3])]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenate(axis):
    arrays = [data(*[2 if i == axis % 2 else 3 for i in range(2)], seed=s) for s in range(3)]
    arrays[1] = np.repeat(arrays[1], 2, axis)
    np.testing.assert_array_equal(nn.concatenate([nn.Tensor(a) for a in arrays], axis).data,
                                  np.concatenate(arrays, axis))
    assert nn.check_gradient(lambda *t: nn.concatenate(t, axis), arrays) < 1e-6


@pytest.mark.parametrize("axes", [None, (1, 0, 2), (2, 0, 1)])
def test_transpose_and_reshape(axes):
    x = data(2, 3, 4)
    np.testing.assert_array_equal(nn.transpose(nn.Tensor(x), axes).data, np.transpose(x, axes))
    assert nn.check_gradient(lambda t: nn.transpose(t, axes), [x]) < 1e-6
    assert nn.check_gradient(lambda t: t.transpose(2, 1, 0).reshape(4, 6), [x]) < 1e-6


@pytest.mark.parametrize("shape", [(3, 4), (2, 17), (2, 3, 5), (6,)], ids=str)
def test_layer_norm(shape):
    x, weight, bias = data(*shape), data(shape[-1], seed=1), data(shape[-1], seed=2)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias
    np.testing.assert_allclose(nn.layer_norm(nn.Tensor(x), weight, bias).data, expected)
    assert nn.check_gradient(nn.layer_norm, [x, weight, bias]) < 1e-6


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(3, 4), (2, 1), (1500, 2)], ids=str)
def test_batch_norm(shape, training):
    x, weight, bias = data(*shape), data(shape[-1], seed=1), data(shape[-1], seed=2)
    mean, var = data(shape[-1], seed=3), 1 + data(shape[-1], seed=4) ** 2
    by, spread = (x.mean(0), x.var(0)) if training else (mean.copy(), var.copy())
    moved = 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0, ddof=1)
    out = nn.batch_norm(nn.Tensor(x), weight, bias, mean, var, training=training)
    np.testing.assert_allclose(out.data, (x - by) / np.sqrt(spread + 1e-5) * weight + bias, rtol=1e-10, atol=1e-12)
    if training:
        np.testing.assert_allclose((mean, var), moved)
    if len(x) < 100:
        kept = None if training else (mean, var)
        assert nn.check_gradient(lambda *t: nn.batch_norm(*t, *(kept or ()), training=training),
                                 [x, weight, bias]) < 1e-6


def test_batch_norm_refusals():
    one = np.ones(2)
    with pytest.raises(ValueError, match="at least 2 rows while training"):
        nn.batch_norm(np.ones((1, 2)), one, one, training=True)
    with pytest.raises(ValueError, match="needs running_mean"):
        nn.batch_norm(np.ones((3, 2)), one, one)
    with pytest.raises(ValueError, match="needs a matrix"):
        nn.batch_norm(np.ones((3, 2, 2)), one, one, training=True)


@pytest.mark.parametrize("shapes", BROADCAST[:6], ids=str)
def test_where(shapes):
    a, b = data(*shapes[0]), data(*shapes[1], seed=1)
    condition = data(*np.broadcast_shapes(*shapes), seed=2) > 0
    np.testing.assert_array_equal(nn.where(condition, a, b).data, np.where(condition, a, b).astype(np.float64))
    assert nn.check_gradient(lambda x, y: nn.where(condition, x, y), [a, b]) < 1e-6


def test_a_maximum_that_ties_shares_its_gradient():
    x = nn.Tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], requires_grad=True)
    nn.max(x, axis=1).sum().backward()
    np.testing.assert_allclose(x.grad, [[0, 0.5, 0.5], [1 / 3] * 3])
    with pytest.raises(ValueError, match="max of an empty"):
        nn.max(nn.Tensor(np.ones((0, 2))))


@pytest.mark.parametrize("indptr", [[0, 3, 3, 4, 9], [0, 9], [0, 0, 9, 9], list(range(10))], ids=str)
@pytest.mark.parametrize("columns", [(), (1,), (3,)], ids=str)
def test_segment_softmax(indptr, columns):
    x = 50 * data(9, *columns)
    parts = [np.exp(p - p.max(0)) / np.exp(p - p.max(0)).sum(0) for p in np.split(x, indptr[1:-1]) if len(p)]
    np.testing.assert_allclose(nn.segment_softmax(nn.Tensor(x), indptr).data, np.concatenate(parts), rtol=1e-12)
    assert nn.check_gradient(lambda t: nn.segment_softmax(t, indptr), [x / 50]) < 1e-6


ARCS = Block(np.array([0, 2, 2, 6], np.int64), np.array([4, 1, 0, 3, 3, 1], np.int64), 5, 3,
             weights=np.array([0.5, -1, 2, 0.3, 1, 1]))  # unsorted, one arc twice, a target and a source without any


def test_operations_on_arcs():
    targets, sources = np.repeat(np.arange(3), np.diff(ARCS.indptr)), ARCS.indices
    left, right, vector, slant = data(3, 2, 4), data(5, 2, 4), data(2, 4), data(2, 4, seed=1)
    both = left[targets] + right[sources] + ARCS.weights[:, None, None] * slant
    cases = {
        "add": (lambda a, b: nn.arc_add(ARCS, a, b), [left[:, :, 0], right[:, :, 0]],
                left[targets, :, 0] + right[sources, :, 0]),
        "dot": (lambda a, b: nn.arc_dot(ARCS, a, b), [left, right], (left[targets] * right[sources]).sum(-1)),
        "scores": (lambda *t: nn.arc_scores(ARCS, *t), [left, right, vector, slant],
                   (np.where(both > 0, both, 0.2 * both) * vector).sum(-1)),
    }
    for function, arrays, expected in cases.values():
        np.testing.assert_allclose(function(*map(nn.Tensor, arrays)).data, expected)
        assert nn.check_gradient(function, arrays) < 1e-6
    weights, expected = data(6, 2), np.zeros((3, 2, 4))
    np.add.at(expected, targets, weights[:, :, None] * right[sources])
    np.testing.assert_allclose(nn.arc_combine(ARCS, nn.Tensor(weights), right).data, expected)
    assert nn.check_gradient(lambda w, x: nn.arc_combine(ARCS, w, x), [weights, right]) < 1e-6


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
def test_aggregate_and_products_with_sparse_arrays(reduce):
    x = data(5, 3)
    assert nn.check_gradient(lambda t: nn.aggregate(ARCS, t, reduce), [x]) < 1e-6
    matrix = sparse.csr_array(np.where(data(3, 5) > 0, data(3, 5), 0))
    np.testing.assert_allclose(nn.spmm(matrix, nn.Tensor(x)).data, matrix @ x)
    assert nn.check_gradient(lambda t: nn.spmm(matrix, t), [x]) < 1e-6


@pytest.mark.parametrize("restart", [0.0, 0.3])
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_propagate(steps, restart):
    matrix, x = sparse.csr_array(np.where(data(5, 5) > 0, 0.4, 0)), data(5, 3)
    expected = x
    for _ in range(steps):
        expected = (1 - restart) * (matrix @ expected) + restart * x
    np.testing.assert_allclose(nn.propagate(matrix, nn.Tensor(x), steps, restart).data, expected)
    assert nn.check_gradient(lambda t: nn.propagate(matrix, t, steps, restart), [x]) < 1e-6


@pytest.mark.parametrize("others", ["", "b", "s", "sb"])
@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
@pytest.mark.parametrize("widths", [(2, 5), (60, 1)], ids=str)
def test_graph_linear_in_either_order(widths, reduce, others):
    block = Block(ARCS.indptr, ARCS.indices, 5, 3)
    arrays = [data(5, widths[0]), data(*widths)]
    arrays += [data(*widths, seed=1)] * ("s" in others) + [data(widths[1], seed=2)] * ("b" in others)

    def function(x, weight, *rest):
        rest = list(rest)
        own = rest.pop(0) if "s" in others else None
        return nn.graph_linear(block, x, weight, rest[0] if rest else None, own, reduce)

    expected = nn.aggregate(block, arrays[0], reduce).data @ arrays[1]
    expected = expected + (arrays[0][:3] @ arrays[2] if "s" in others else 0) + (arrays[-1] if "b" in others else 0)
    np.testing.assert_allclose(function(*map(nn.Tensor, arrays)).data, expected)
    assert nn.check_gradient(function, arrays) < 1e-6


def test_a_zero_row_has_length_zero_and_gradient_zero():
    # S4-6: zero vectors give NaN gradients in the reference.
    x = nn.Tensor(np.array([[0.0, 0.0], [3.0, 4.0], [1e-13, 0.0]]), requires_grad=True)
    y = nn.l2_normalise(x)
    np.testing.assert_allclose(y.data, [[0, 0], [0.6, 0.8], [0, 0]])
    y.backward(np.full((3, 2), 7.0))
    np.testing.assert_array_equal(x.grad[[0, 2]], 0)
    assert abs(x.grad[1] @ x.data[1]) < 1e-12  # orthogonal to the row


class TestDropout:
    def test_keeps_the_expected_share_and_the_expected_mean(self):
        x = np.ones((500, 200), np.float32)
        y = nn.dropout(x, 0.3, key=42).data
        kept = np.count_nonzero(y) / y.size
        assert abs(kept - 0.7) < 4 * np.sqrt(0.21 / y.size)
        np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-4)
        columns = (y != 0).mean(axis=0)
        assert np.abs(columns - 0.7).max() < 5 * np.sqrt(0.21 / 500)

    def test_gradient_goes_through_the_same_mask(self):
        x = nn.Tensor(data(7, 9), requires_grad=True)
        y = nn.dropout(x, 0.5, key=3)
        assert y._node.saved == ()  # recomputed, not kept
        y.backward(np.ones((7, 9)))
        np.testing.assert_allclose(x.grad * x.data, y.data)
        assert nn.check_gradient(lambda t: nn.dropout(t, 0.25, key=9), [data(3, 7)]) < 1e-6

    def test_mask_depends_on_key_and_place_alone(self):
        x = np.ones(200_003)
        with working_threads(1):
            one = nn.dropout(x, 0.5, key=1).data
        with working_threads(2):
            two = nn.dropout(x, 0.5, key=1).data
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(nn.dropout(x[:1001], 0.5, key=1).data, one[:1001])
        for other in (2, 2**63 + 1):
            agree = np.mean((nn.dropout(x, 0.5, key=other).data != 0) == (one != 0))
            assert abs(agree - 0.5) < 0.01
        shifted = np.mean((one[4:] != 0) == (nn.dropout(x, 0.5, key=2).data[:-4] != 0))
        assert abs(shifted - 0.5) < 0.01  # neighbouring keys are not the same stream, shifted

    def test_ends_and_refusals(self):
        x = nn.Tensor(data(5, 5))
        assert nn.dropout(x, 0.0, key=1) is x and nn.dropout(x, 0.5, key=1, training=False) is x
        np.testing.assert_array_equal(nn.dropout(x, 1.0, key=1).data, 0)
        with pytest.raises(ValueError, match="p must be"):
            nn.dropout(x, 1.5, key=1)
        with pytest.raises(TypeError, match="key must be an integer"):
            nn.dropout(x, 0.5, key=None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_do_not_depend_on_the_number_of_threads(dtype):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(dtype) for shape in ((20_000, 24), (24, 16), (16,))]

    def run():
        x, w, b = (nn.Tensor(a, requires_grad=True) for a in arrays)
        y = nn.l2_normalise(nn.elu(nn.affine(x, w, b)))
        (y * y[::-1]).sum().backward()
        return y.data, x.grad, w.grad, b.grad

    with working_threads(1):
        one = run()
    with working_threads(2):
        two = run()
    for a, b in zip(one, two, strict=True):
        assert a.dtype == dtype
        np.testing.assert_array_equal(a, b)


def test_non_contiguous_inputs():
    x = data(6, 8)[::2, ::-2]
    for name in ("relu", "elu", "l2_normalise"):
        function, reference = UNARY[name]
        np.testing.assert_allclose(function(nn.Tensor(x)).data, reference(x), rtol=1e-12)
        assert nn.check_gradient(lambda t, f=function: f(t.T), [x]) < 1e-6


def test_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="empty"):
        nn.mean(nn.Tensor(np.ones((0, 3))))


@pytest.mark.parametrize("n", [1, 8192, 8193, 8 * 8192, 8 * 8192 + 1, 100_000])
def test_products_over_many_rows_are_summed_in_fixed_pieces(n):
    a, b = (np.random.default_rng(s).normal(size=(n, 3)) for s in range(2))
    with working_threads(1):
        one = matmul_rows(a, b)
    with working_threads(2):
        two = matmul_rows(a, b)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(one, a.T @ b, rtol=1e-10, atol=1e-10)
