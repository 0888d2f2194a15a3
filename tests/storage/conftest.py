"""Fixtures of the storage tests."""
import os

import pytest


@pytest.fixture(autouse=True)
def syncs(monkeypatch):
    """Descriptors that were synced. The disk of a test machine is not waited for."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    return synced
