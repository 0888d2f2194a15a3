"""Optimizers of tables: value by value, duplicates, refusals, state, threads."""
import json

import numpy as np
import pytest

from gnncy import nn
from gnncy._threads import working_threads
from gnncy.optim import Adam, RowAdagrad, SparseAdam

N, D = 20, 5


def added(rows, grads):
    """Row by row in plain Python, each with the sum of its gradients."""
    sums = {}
    for row, grad in zip(rows, grads, strict=True):
        sums[int(row)] = sums[int(row)] + grad if int(row) in sums else grad.copy()
    return sums


def adagrad_formula(table, steps, lr=1e-2, eps=1e-10):
    table, total = table.copy(), np.zeros(len(table))
    for rows, grads in steps:
        for r, g in added(rows, grads).items():
            total[r] += np.mean(g**2)
            table[r] -= lr * g / (np.sqrt(total[r]) + eps)
    return table


def adam_formula(table, steps, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
    table, m, v = table.copy(), np.zeros_like(table), np.zeros_like(table)
    for t, (rows, grads) in enumerate(steps, 1):
        for r, g in added(rows, grads).items():
            m[r] += (1 - betas[0]) * (g - m[r])
            v[r] += (1 - betas[1]) * (g**2 - v[r])
            table[r] -= lr * np.sqrt(1 - betas[1]**t) / (1 - betas[0]**t) * m[r] / (np.sqrt(v[r]) + eps)
    return table


def problem(dtype=np.float64, steps=50, duplicates=True):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(N, D)).astype(dtype)
    draws = [rng.integers(0, N, 12) if duplicates else rng.permutation(N)[:12] for _ in range(steps)]
    return table, [(rows, rng.normal(size=(12, D)).astype(dtype)) for rows in draws]


@pytest.mark.parametrize("kind, formula, options", [
    (RowAdagrad, adagrad_formula, {}), (RowAdagrad, adagrad_formula, {"lr": 0.3, "eps": 0.1}),
    (SparseAdam, adam_formula, {}), (SparseAdam, adam_formula, {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-2})])
@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("dtype, rtol", [(np.float64, 1e-12), (np.float32, 5e-5)])
def test_fifty_steps_against_the_algorithm(kind, formula, options, duplicates, dtype, rtol):
    table, steps = problem(dtype, duplicates=duplicates)
    assert any(np.unique(rows).size < rows.size for rows, _ in steps) == duplicates
    expected = formula(table.astype(np.float64), [(r, g.astype(np.float64)) for r, g in steps], **options)
    optimizer = kind(table, **options)
    for rows, grads in steps:
        before, others = grads.copy(), np.setdiff1d(np.arange(N), rows)
        kept = table[others].copy()
        optimizer.step(rows, grads)
        np.testing.assert_array_equal(table[others], kept)
        np.testing.assert_array_equal(grads, before)
    assert table.dtype == dtype
    np.testing.assert_allclose(table, expected, rtol=rtol, atol=rtol)


def test_on_all_rows_sparse_adam_is_adam():
    table, _ = problem(steps=0)
    twin = table.copy()
    grads = np.random.default_rng(1).normal(size=(10, N, D))
    one, two = SparseAdam(table, lr=0.1, eps=1e-300), Adam(twin, lr=0.1, eps=1e-300)
    for g in grads:
        one.step(np.arange(N), g)
        two.step([g])
    np.testing.assert_allclose(table, twin, rtol=1e-12)


def test_duplicates_are_added_in_the_order_given():
    """Float sums depend on their order: the given one is kept, wherever the duplicates stand."""
    a = np.array([[1e8], [1.0], [-1e8], [1.0]], np.float32)
    for order in ([0, 1, 2, 3], [0, 2, 1, 3], [1, 3, 0, 2]):
        table = np.zeros((3, 1), np.float32)
        optimizer = RowAdagrad(table, lr=1.0, eps=1.0)
        optimizer.step([2, 0, 2, 2, 2], np.concatenate([a[order][:1], [[0]], a[order][1:]]))
        total = np.float32(0)
        for value in a[order, 0]:
            total += value
        np.testing.assert_allclose(optimizer.state["sum"][0], [0, 0, total**2])


@pytest.mark.parametrize("kind", [RowAdagrad, SparseAdam])
def test_bits_do_not_depend_on_threads_or_on_the_order_of_different_rows(kind):
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5000, 40)).astype(np.float32)
    rows = rng.integers(0, 5000, 6000)
    grads = rng.normal(size=(6000, 40)).astype(np.float32)

    def run(threads, rows, grads):
        table = start.copy()
        optimizer = kind(table)
        with working_threads(threads):
            for _ in range(2):
                optimizer.step(rows, grads)
        return table

    one = run(1, rows, grads)
    np.testing.assert_array_equal(one, run(2, rows, grads))
    order = np.argsort(rows, kind="stable")
    np.testing.assert_array_equal(one, run(1, rows[order], grads[order]))
    unique, first = np.unique(rows, return_index=True)
    shuffled = rng.permutation(unique.size)
    np.testing.assert_array_equal(run(1, unique, grads[first]), run(2, unique[shuffled], grads[first][shuffled]))


@pytest.mark.parametrize("kind", [RowAdagrad, SparseAdam])
def test_resume_is_bit_exact(kind):
    table, steps = problem(np.float32, 20)
    straight = table.copy()
    one = kind(straight, lr=0.1)
    for step in steps:
        one.step(*step)
    first = kind(table, lr=0.1)
    for step in steps[:9]:
        first.step(*step)
    state = first.state_dict()
    numbers = json.loads(json.dumps(first.numbers()))
    second = kind(table)
    second.load_state_dict(numbers | {slot: state[slot] for slot in second.slots})
    for step in steps[9:]:
        second.step(*step)
    np.testing.assert_array_equal(table, straight)


@pytest.mark.parametrize("kind", [RowAdagrad, SparseAdam])
def test_refusals_change_nothing(kind):
    table, _ = problem(steps=0)
    before = table.copy()
    optimizer = kind(table)
    ones = np.ones((2, D))
    for rows, grads, error, message in [
        ([0, N], ones, IndexError, f"rows must lie in 0..{N - 1}, got {N}"),
        ([0, -1], ones, IndexError, "got -1"), ([0.0, 1.0], ones, TypeError, "must be integers"),
        ([0, 1], ones[:, :3], ValueError, r"grads must have shape \(2, 5\)"),
        ([0, 1, 2], ones, ValueError, r"grads must have shape \(3, 5\)"),
        ([7, 3], np.where(np.arange(2)[:, None] == 1, np.nan, ones), ValueError, "first for row 3.*nothing was"),
    ]:
        with pytest.raises(error, match=message):
            optimizer.step(rows, grads)
    np.testing.assert_array_equal(table, before)
    optimizer.step([], np.empty((0, D)))
    np.testing.assert_array_equal(table, before)
    skipping = kind(table, nonfinite="skip")
    skipping.step([1, 2], ones * np.inf)
    np.testing.assert_array_equal(table, before)
    assert skipping.skipped == 1 and skipping.counts == [0]
    with pytest.raises(ValueError, match="table must be 2-dimensional"):
        kind(np.ones(3))
    with pytest.raises(ValueError, match="eps must be greater than 0"):
        kind(table, eps=0)


def test_zero_gradients_and_tensors():
    table = nn.Tensor(np.ones((3, 2), np.float32), requires_grad=True)
    optimizer = RowAdagrad(table, lr=0.5)
    optimizer.step([1], np.zeros((1, 2)))  # float64 and zero: no 0 / 0
    assert (table.data == 1).all()
    optimizer.step([1], np.full((1, 2), 2.0))
    np.testing.assert_allclose(table.data, [[1, 1], [0.5, 0.5], [1, 1]])
