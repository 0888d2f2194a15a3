"""Graphs as ``scipy.sparse.csr_array``: one canonical form, orders, sampling, random walks, aggregation."""
from gnncy.graph.aggregate import aggregate, aggregate_grad, spmm
from gnncy.graph.community import community_order
from gnncy.graph.csr import as_csr, degrees, is_symmetric, normalize, undirected
from gnncy.graph.inclusion import inclusion_probabilities
from gnncy.graph.order import bfs_order, degree_order, inverse_order, permute, rcm_order, vip_order
from gnncy.graph.sampler import Block, NeighborSampler, SampledBatch
from gnncy.graph.spectral import eigenvalues, eigenvectors
from gnncy.graph.walks import RandomWalks

__all__ = [
    "Block",
    "NeighborSampler",
    "RandomWalks",
    "SampledBatch",
    "aggregate",
    "aggregate_grad",
    "as_csr",
    "bfs_order",
    "community_order",
    "degree_order",
    "degrees",
    "eigenvalues",
    "eigenvectors",
    "inclusion_probabilities",
    "inverse_order",
    "is_symmetric",
    "normalize",
    "permute",
    "rcm_order",
    "spmm",
    "undirected",
    "vip_order",
]
