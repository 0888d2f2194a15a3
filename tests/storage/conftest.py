"""Fixtures of the storage tests."""
import os

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def syncs(monkeypatch):
    """Descriptors that were synced. The disk of a test machine is not waited for."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    return synced


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((300, 7)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "features.npy"
