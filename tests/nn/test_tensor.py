"""The tape: what is recorded, how it is reversed, what is freed, what is refused."""
import gc
import weakref

import numpy as np
import pytest

from gnncy import nn


def test_gradients_accumulate_over_uses_and_over_calls():
    # S4-32: the reference overwrites, and gradients of a former backward persist unseen.
    x = nn.Tensor([2.0, 3.0], requires_grad=True)
    (x * x + x).sum().backward()
    np.testing.assert_array_equal(x.grad, [5, 7])
    (3 * x).sum().backward()
    np.testing.assert_array_equal(x.grad, [8, 10])
    x.zero_grad()
    np.testing.assert_array_equal(x.grad, [0, 0])


def test_one_array_shared_by_two_inputs_is_not_added_into():
    a, b = (nn.Tensor(np.ones(3), requires_grad=True) for _ in range(2))
    c = a + b  # both receive the same gradient array
    (c + a * 2 + c).sum().backward()
    np.testing.assert_array_equal(a.grad, [4, 4, 4])
    np.testing.assert_array_equal(b.grad, [2, 2, 2])
    assert not np.shares_memory(a.grad, b.grad)


def test_a_graph_with_shared_parts_is_reversed_once_per_node():
    x = nn.Tensor(1.0, requires_grad=True)
    y = x
    for _ in range(60):  # 2**60 paths
        y = y + y
    y.backward()
    assert x.grad == 2.0**60


def test_a_chain_of_ten_thousand_operations_needs_no_recursion():
    x = y = nn.Tensor(np.zeros(2), requires_grad=True)
    for _ in range(10_000):
        y = y + 1.0
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [1, 1])
    z = x
    for _ in range(50_000):
        z = z + 1.0
    del z  # never reversed: taking the tape down must not overflow the stack either


def test_saved_arrays_are_freed_as_soon_as_used_while_the_result_lives():
    x = nn.Tensor(np.ones((4, 4)), requires_grad=True)
    y = x.exp()
    kept = weakref.ref(y.data)
    loss = (y * y).sum()
    del y
    gc.collect()
    assert kept() is not None  # the tape holds it
    loss.backward()
    assert kept() is None
    assert loss.item() > 0


def test_the_tape_keeps_only_what_operations_saved():
    x = nn.Tensor(np.ones((4, 4)), requires_grad=True)
    y = x + 1.0
    dropped = weakref.ref(y.data)
    z = y * 2.0 + x  # the product saves y
    total = (z + 1.0).sum()
    unneeded = weakref.ref(z.data)
    del y, z
    assert dropped() is not None and unneeded() is None
    total.backward()
    np.testing.assert_array_equal(x.grad, np.full((4, 4), 3))


def test_second_backward_is_refused_with_a_reason():
    x = nn.Tensor([1.0, 2.0], requires_grad=True)
    y = x * x
    y.sum().backward()
    with pytest.raises(RuntimeError, match="already called"):
        y.sum().backward()


def test_backward_refusals():
    x = nn.Tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(RuntimeError, match="pass grad"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        (x * 2).backward(np.ones(3))
    with pytest.raises(RuntimeError, match="requires_grad=True"):
        nn.Tensor([1.0]).backward()
    with pytest.raises(TypeError, match="complex"):
        nn.Tensor([1j])
    with pytest.raises(TypeError, match="object"):
        nn.Tensor(np.array([None]))
    with pytest.raises(RuntimeError, match="detach"):
        np.asarray(x)
    with pytest.raises(RuntimeError, match="detach"):
        x.numpy()
    assert np.asarray(x.detach()).tolist() == [1.0, 2.0]


def test_the_given_gradient_is_used_and_left_alone():
    x = nn.Tensor([1.0, 2.0], requires_grad=True)
    seed = np.array([3.0, 4.0])
    x.backward(seed)
    x.backward(seed)
    np.testing.assert_array_equal(x.grad, [6, 8])
    np.testing.assert_array_equal(seed, [3, 4])


def test_no_grad_and_detach_leave_the_tape():
    x = nn.Tensor([1.0], requires_grad=True)
    with nn.no_grad():
        assert not (x * 2).requires_grad
        with pytest.raises(ZeroDivisionError), nn.no_grad():
            raise ZeroDivisionError
        assert not (x * 2).requires_grad  # an inner block restores what was before it
    assert (x * 2).requires_grad
    y = (x * 3).detach()
    assert not y.requires_grad and np.shares_memory(y.data, y.detach().data)
    (x * y).sum().backward()
    np.testing.assert_array_equal(x.grad, [3])


def test_no_grad_holds_for_its_thread_only():
    import threading
    x = nn.Tensor([1.0], requires_grad=True)
    seen = []
    with nn.no_grad():
        thread = threading.Thread(target=lambda: seen.append((x * 2).requires_grad))
        thread.start()
        thread.join()
    assert seen == [True]


def test_an_operation_must_return_one_gradient_per_input_of_its_shape():
    class TooFew(nn.Operation):
        def forward(self, a, b):
            return a + b

        def backward(self, grad):
            return grad,

    class WrongShape(nn.Operation):
        def forward(self, x):
            return x.sum(axis=0)

        def backward(self, grad):
            return grad,

    x = nn.Tensor(np.ones((2, 3)), requires_grad=True)
    with pytest.raises(AssertionError, match="one gradient per input"):
        TooFew.apply(x, x).sum().backward()
    with pytest.raises(AssertionError, match="another shape"):
        WrongShape.apply(x).sum().backward()


@pytest.mark.parametrize("given, dtype", [(np.float32, np.float32), (np.float64, np.float64), (np.float16, np.float32),
                                          (np.int64, np.float32), (bool, np.float32), (">f8", np.float64)])
def test_dtypes(given, dtype):
    assert nn.Tensor(np.ones(2, given)).dtype == dtype


def test_constants_take_the_dtype_of_the_tensors_and_arrays_stand_left_or_right():
    x = nn.Tensor(np.ones(2, np.float32), requires_grad=True)
    array = np.array([1.0, 2.0])
    for y in (array * x, x * array, 2.0 * x, array + x, array - x, array / x, 1 - x, 1 / x, np.float64(2) * x):
        assert isinstance(y, nn.Tensor) and y.dtype == np.float32
    assert isinstance(np.ones((1, 2)) @ x.reshape(2, 1), nn.Tensor)
    wide = nn.Tensor(array, requires_grad=True)
    (x * wide).sum().backward()
    assert x.grad.dtype == np.float32 and wide.grad.dtype == np.float64


def test_data_is_shared_and_callers_arrays_are_not_changed():
    array = np.ones(3, np.float32)
    array.flags.writeable = False
    x = nn.Tensor(array, requires_grad=True)
    assert np.shares_memory(x.data, array)
    nn.relu(x).sum().backward()
    nn.dropout(x, 0.5, key=1).sum().backward()
    np.testing.assert_array_equal(array, 1)


def test_repr_and_small_methods():
    x = nn.Tensor([[1.0, 2.0]], requires_grad=True)
    assert repr(x) == "Tensor([[1., 2.]], requires_grad=True)"
    assert len(x) == 1 and x.ndim == 2 and x.size == 2 and x.is_leaf and not (x * 1).is_leaf
    assert x.T.shape == (2, 1) and (x @ x.T).item() == 5.0
    assert x.reshape(2).shape == x.reshape((2,)).shape == x.reshape(-1).shape == (2,)
    with pytest.raises(TypeError, match="detach"):
        nn.Tensor(x)


def test_check_gradient_finds_a_wrong_gradient():
    class Wrong(nn.Operation):
        def forward(self, x):
            self.save(x)
            return x**3

        def backward(self, grad):
            return grad * 3.001 * self.saved[0]**2,

    error = nn.check_gradient(Wrong.apply, [np.linspace(1, 2, 5)])
    assert 3e-4 < error < 4e-4

    class Missing(nn.Operation):
        def forward(self, x):
            return 2 * x

        def backward(self, grad):
            return np.zeros_like(grad),

    assert nn.check_gradient(Missing.apply, [[1.0]]) > 0.9
