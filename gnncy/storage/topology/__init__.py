"""Graphs on disk: what lies in their folder, reading arcs of it, sampling from it."""
from gnncy.storage.topology.graph import GraphStorage
from gnncy.storage.topology.sampler import StorageSampler

__all__ = ["GraphStorage", "StorageSampler"]
