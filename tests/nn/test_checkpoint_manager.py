"""Activations under a budget, without the tape: the manager, the store, backpropagation through plain functions."""
import gc
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from gnncy.errors import MemoryLimitError, StorageError
from gnncy.nn import RecomputationPolicy as Policy
from gnncy.nn.checkpointing import ActivationStore, EfficientBackprop, GradientCheckpointManager, SpillFile
from gnncy.storage.plans import DiskModel

FAST_DISK = DiskModel(0.0, 1e15, 1e15)
SLOW_DISK = DiskModel(10.0, 1e3, 1e3)


def array(value, n=100):
    return np.full(n, value, np.float32)


def manager(budget=1200, policy=None, **options):
    return GradientCheckpointManager(budget, Policy.all() if policy is None else policy, **options)


def in_time(function, seconds=10):
    """Run in a thread that may hang, and say so if it does."""
    errors = []

    def run():
        try:
            function()
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "deadlock"
    if errors:
        raise errors[0]


def test_the_first_eviction_does_not_hang():
    # S1-1
    def fill():
        held = manager()
        for layer in range(8):
            held.checkpoint_activation(layer, array(layer))
        assert held.memory_usage == 1200 and held.get_statistics().evicted == 5

    in_time(fill)


def test_what_was_stored_comes_back():
    # S1-2: the reference hands back zeros. The caller may use its buffer again.
    held, buffer = manager(), array(3.0)
    assert held.checkpoint_activation("a", buffer)
    buffer[:] = 9
    np.testing.assert_array_equal(held.get_checkpoint("a"), array(3.0))
    assert held.get_checkpoint("a") is None


def test_taking_out_gives_the_bytes_back():
    # S1-3
    held = manager()
    held.checkpoint_activation(0, array(0))
    held.checkpoint_activation(1, array(1))
    held.get_checkpoint(1)
    held.get_checkpoint(0)
    statistics = held.get_statistics()
    assert held.memory_usage == statistics.total_memory == statistics.in_memory_checkpoints == 0
    for step in range(100):
        assert held.checkpoint_activation(1, array(step))
        assert held.get_checkpoint(1)[0] == step


def test_storing_again_counts_once():
    # S1-4
    held = manager(800)
    for value in range(5):
        assert held.checkpoint_activation("a", array(value))
        assert held.memory_usage == 400 and held.num_checkpoints == 1
    assert held.get_checkpoint("a")[0] == 4


def test_as_many_go_as_are_needed_and_what_cannot_fit_is_not_stored():
    # S1-5
    held = manager(2000)
    for layer in range(5):
        held.checkpoint_activation(layer, array(layer))
    assert held.checkpoint_activation(5, array(5, 300))  # 1200 bytes: two of the others stay at most
    assert held.memory_usage <= 2000 and held.has_checkpoint(0) and held.has_checkpoint(5)
    before = held.memory_usage
    assert not held.checkpoint_activation(6, array(6, 450))  # 1800 bytes beside the root's 400
    assert held.memory_usage == before and held.get_statistics().refused == 1


def test_the_root_alone_may_not_exceed_the_budget():
    with pytest.raises(MemoryLimitError, match="at least 4000 bytes"):
        manager(1200).checkpoint_activation(0, array(0, 1000))


def test_threads_together_never_exceed_the_budget():
    # S1-6
    held, over = manager(4000), []

    def work(first):
        for layer in range(first, first + 60):
            held.checkpoint_activation(layer, array(layer, 50 + layer % 7))
            if held.memory_usage > 4000:
                over.append(held.memory_usage)
            held.get_checkpoint(layer - 3)

    def both():
        threads = [threading.Thread(target=work, args=(1000 * k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    in_time(both, 30)
    assert not over and held.get_statistics().peak_memory <= 4000


def test_the_root_is_stored_whatever_the_policy_and_never_evicted():
    # S1-8, S1-10: the reference evicts the first layer first, from which all others are recomputed.
    held = manager(1200, Policy.none())
    for layer in range(6):
        assert held.checkpoint_activation(layer, array(layer)) == (layer == 0)
    held = manager()
    for layer in range(50):
        held.checkpoint_activation(layer, array(layer), cost=1000.0 if layer else 0.0)
        assert held.has_checkpoint(0)


def test_eviction_goes_by_cost_over_size_and_staleness():
    # Kirisame et al.: cheap, large and stale goes first; the neighbours that are gone count with it.
    held = manager(1600)
    for layer, cost in enumerate([1.0, 50.0, 1.0, 50.0]):
        held.checkpoint_activation(layer, array(layer), cost)
    held.checkpoint_activation(4, array(4), 1.0)
    assert not held.has_checkpoint(2)
    held = manager(4 * 400 + 800)
    for layer, size in enumerate([100, 100, 200, 100, 100]):
        held.checkpoint_activation(layer, array(layer, size), 10.0)
    held.read_checkpoint(1)  # used just now
    held.checkpoint_activation(5, array(5), 10.0)
    assert held.has_checkpoint(1) and not held.has_checkpoint(2)


def test_statistics_tell_what_is_there():
    # S1-11: nothing is left of what was evicted, and the use of an empty budget is refused, not divided by.
    held = manager(1200)
    for layer in range(10):
        held.checkpoint_activation(layer, array(layer))
    statistics = held.get_statistics()
    assert statistics.total_checkpoints == statistics.in_memory_checkpoints == held.num_checkpoints == 3
    assert statistics.total_memory == held.memory_usage == statistics.peak_memory == 1200
    assert statistics.memory_utilization == 1.0
    assert (statistics.stored, statistics.evicted) == (10, 7)
    held.clear()
    assert held.get_statistics().stored == held.memory_usage == held.num_checkpoints == 0
    with pytest.raises(ValueError, match="memory_budget must be positive"):
        manager(0)


def test_what_is_dear_goes_to_disk_and_comes_back():
    held = manager(1200, disk=FAST_DISK)
    for layer in range(6):
        held.checkpoint_activation(layer, array(layer))
    statistics = held.get_statistics()
    assert statistics.spilled == 3 and statistics.evicted == 0 and statistics.disk_memory == 1200
    assert statistics.total_checkpoints == 6 and statistics.in_memory_checkpoints == 3
    for layer in reversed(range(6)):
        np.testing.assert_array_equal(held.get_checkpoint(layer), array(layer))
    assert held.get_statistics().disk_memory == 0
    slow = manager(1200, disk=SLOW_DISK)
    for layer in range(6):
        slow.checkpoint_activation(layer, array(layer))
    assert slow.get_statistics().disk_memory == 0 and slow.get_statistics().evicted == 3


# -- the store ---------------------------------------------------------------------------------------------------------

def test_the_store_counts_once_and_hands_out_without_a_copy():
    # S1-12
    store = ActivationStore("1kB")
    for value in (1.0, 2.0):
        store.store("a", array(value))
    assert store.memory_usage == 400 and len(store) == 1
    assert store.retrieve("a") is store.retrieve("a")
    with pytest.raises(ValueError, match="read-only"):
        store.retrieve("a")[0] = 3
    assert store.remove("a") and not store.remove("a") and store.memory_usage == 0
    with pytest.raises(KeyError):
        store.retrieve("a")


def test_the_store_keeps_its_budget():
    store = ActivationStore(1000)
    store.store("a", array(1), seconds=1.0)
    store.store("b", array(2), seconds=1.0)
    assert not store.store("c", array(3), seconds=1.0) and "c" not in store
    with pytest.raises(MemoryLimitError, match="at least 1200 bytes are needed, or a disk"):
        store.store("c", array(3))
    with ActivationStore(1000, disk=FAST_DISK) as store:
        for key in "abcd":
            assert store.store(key, array(ord(key)), seconds=1.0)
        assert store.memory_usage == 800 and store.disk_usage == 800
        for key in "dcba":
            np.testing.assert_array_equal(store.retrieve(key), array(ord(key)))
        store.remove("c")
        assert store.disk_usage == 400


def test_space_in_the_file_is_used_again(tmp_path):
    rng = np.random.default_rng(0)
    with SpillFile(tmp_path) as file:
        held = {}
        for step in range(300):
            if held and rng.random() < 0.5:
                place, expected = held.pop(rng.choice(list(held)))
                np.testing.assert_array_equal(file.read(place), expected)
                file.free(place)
            else:
                x = rng.standard_normal((rng.integers(1, 40), 5)).astype(rng.choice([np.float32, np.float64]))
                x = np.asfortranarray(x) if rng.random() < 0.3 else x
                held[step] = file.write(x), x
            assert file.nbytes == sum(x.nbytes for _, x in held.values())
        for place, expected in held.values():
            np.testing.assert_array_equal(file.read(place), expected)
            file.free(place)
        assert file.nbytes == 0 and os.fstat(file._file.fileno()).st_size == 0


def test_a_file_that_fails_says_so(tmp_path):
    with pytest.raises(StorageError, match="no temporary file for activations can be made in .*missing"):
        SpillFile(tmp_path / "missing")
    file = SpillFile(tmp_path)
    place = file.write(array(1))
    file._file.truncate(100)
    with pytest.raises(StorageError, match="was it truncated"):
        file.read(place)
    file.close()
    with pytest.raises((StorageError, ValueError)):
        file.write(array(1))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_error_and_leaves_the_count_right(tmp_path, monkeypatch):
    with SpillFile(tmp_path) as file, open("/dev/full", "wb", buffering=0) as full:
        kept = file.write(array(1))
        real = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: full.write(data))
        with pytest.raises(StorageError, match="No space left.*name another folder"):
            file.write(array(2))
        monkeypatch.setattr(os, "pwrite", real)
        assert file.nbytes == 400
        np.testing.assert_array_equal(file.read(kept), array(1))


CRASH = """
import os, sys, time
import numpy as np
from gnncy import nn
from gnncy.nn.checkpointing import ActivationStore, Spill, SpillFile
from gnncy.storage.plans import DiskModel
store = ActivationStore(1, disk=DiskModel(0.0, 1e15, 1e15), folder=sys.argv[1])
store.store("a", np.ones(100_000))
assert store.disk_usage == 800_000
print("ready", flush=True)
if sys.argv[2] == "error":
    raise RuntimeError("on purpose")
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["use", "error", "crash"])
def test_no_file_is_left_behind(tmp_path, how):
    if how == "use":
        with ActivationStore(1, disk=FAST_DISK, folder=tmp_path) as store:
            store.store("a", array(1), seconds=1.0)
            assert store.disk_usage == 400
    else:
        process = subprocess.Popen([sys.executable, "-c", CRASH, str(tmp_path), how], stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, cwd=os.getcwd())
        assert process.stdout.readline() == b"ready\n"
        if how == "crash":
            process.send_signal(signal.SIGKILL)
        process.wait(30)
        process.stdout.close()
    gc.collect()
    assert list(tmp_path.iterdir()) == []


# -- plain functions ---------------------------------------------------------------------------------------------------

WEIGHTS = [np.random.default_rng(k).standard_normal((8, 8)).astype(np.float32) / 3 for k in range(14)]


def forward(k):
    return lambda x: np.tanh(x @ WEIGHTS[k])


def backward(k, grads):
    def run(x, grad):
        inner = grad * (1 - np.tanh(x @ WEIGHTS[k])**2)
        grads[k] = (x.T @ inner).tobytes()
        return inner @ WEIGHTS[k].T
    return run


def step(backprop, depth=14):
    grads: dict = {}
    x = np.random.default_rng(99).standard_normal((32, 8)).astype(np.float32)
    for k in range(depth):
        x = backprop.forward_with_checkpoint(k, x, forward(k), 1.0)
    grad = x
    for k in reversed(range(depth)):
        grad = backprop.backward_with_recomputation(k, grad, backward(k, grads))
    return grads, grad.tobytes()


@pytest.mark.parametrize("budget", [1024, 3000, 10_000, 10**6])
@pytest.mark.parametrize("policy", [Policy.all(), Policy.none(), Policy.every(4), Policy.selective(1e9)], ids=repr)
@pytest.mark.parametrize("disk", [None, FAST_DISK], ids=["memory", "disk"])
def test_recomputed_gradients_have_the_bits_of_the_plain_run(budget, policy, disk):
    # S1-2, S1-7: never a blank array, whatever is missing.
    plain = step(EfficientBackprop(1024, enabled=False))  # S1-13: disabled keeps the true inputs
    assert plain[0][0] != plain[0][1]
    backprop = EfficientBackprop(budget, policy, disk=disk)
    for _ in range(2):
        assert step(backprop) == plain
        assert backprop.get_statistics().peak_memory <= budget
        assert backprop.checkpoint_manager.memory_usage == 0


def test_nothing_is_recomputed_where_all_fits_and_all_from_the_root_where_nothing_does():
    backprop = EfficientBackprop(10**6, Policy.all())
    step(backprop)
    assert backprop.recomputed == 0
    backprop = EfficientBackprop(1024, Policy.none())  # the root alone
    step(backprop)
    assert backprop.recomputed == 13 * 14 // 2


def test_a_stretch_is_not_run_anew_for_each_of_its_layers():
    # The reference's segment checkpointer takes S (S - 1) / 2 steps for a stretch of S.
    backprop = EfficientBackprop(10**6, Policy.every(7))
    step(backprop)
    assert backprop.recomputed == 2 * 6


def test_a_missing_layer_is_an_error():
    # S1-7, S1-13
    backprop = EfficientBackprop(10**4)
    with pytest.raises(KeyError, match="no forward pass"):
        backprop.backward_with_recomputation(0, np.ones(3), lambda x, g: g)
    backprop.forward_with_checkpoint(0, array(1), np.sin)
    with pytest.raises(RuntimeError, match="switched between steps"):
        backprop.set_enabled(False)
    backprop.clear_checkpoints()
    backprop.set_enabled(False)
    assert not backprop.is_enabled


def test_a_new_pass_replaces_an_unfinished_one():
    backprop = EfficientBackprop(10**6, Policy.all())
    x = array(0.5)
    for k in range(5):
        x = backprop.forward_with_checkpoint(k, x, np.sin)
    backprop.forward_with_checkpoint(0, array(2.0), np.cos)
    assert backprop.checkpoint_manager.num_checkpoints == 1
    seen = []
    backprop.backward_with_recomputation(0, array(1), lambda x, g: seen.append(x[0]) or g)
    assert seen == [2.0]


def test_random_functions_repeat():
    # S1-14
    def run(budget):
        rng = np.random.default_rng(5)
        backprop = EfficientBackprop(budget, Policy.all(), rng=rng)
        x = np.random.default_rng(1).standard_normal(100)
        for k in range(6):
            x = backprop.forward_with_checkpoint(k, x, lambda x: np.sin(x) * (rng.random(100) < 0.8))
        grad = np.ones(100)
        for k in reversed(range(6)):
            grad = backprop.backward_with_recomputation(
                k, grad, lambda x, g: g * np.cos(x) * (rng.random(100) < 0.8))
        return grad.tobytes(), rng.random()

    assert run(800) == run(10**6)


def test_time_of_a_layer_is_measured():
    backprop = EfficientBackprop(10**6, Policy.all())
    backprop.forward_with_checkpoint(0, array(0), lambda x: (time.sleep(0.02), x)[1])
    backprop.forward_with_checkpoint(1, array(0), np.sin)
    assert backprop.checkpoint_manager._held[1].recomputation_cost >= 20
