"""Features, and that each test leaves no thread and no descriptor."""
import gc

import numpy as np
import pytest

from epoch_plans import DIM, N, descriptors, own_threads
from gnncy.storage import FeatureStorage


@pytest.fixture(autouse=True)
def nothing_stays():
    before = descriptors()
    yield
    if own_threads() or len(descriptors() - before) > 1:  # the one that lists them
        gc.collect()
        assert not own_threads() and len(descriptors() - before) <= 1


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)


@pytest.fixture
def store(x, tmp_path):
    with FeatureStorage.from_array(x, tmp_path / "x.npy", order=np.random.default_rng(1).permutation(N)) as store:
        yield store
