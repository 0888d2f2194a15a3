"""Passes over all nodes, out of core: reduction of wide features, diffusion over the graph."""
from gnncy.storage.passes.propagate import Diffusion, propagate
from gnncy.storage.passes.reduce import (
    CHUNK,
    FeatureReducer,
    chunk_rows,
    fixed_signs,
    is_sparse,
    iter_nodes,
    reduced_tiles,
    unit_rows,
)
from gnncy.storage.passes.tiles import TILE, ColumnTiles

__all__ = ["CHUNK", "TILE", "ColumnTiles", "Diffusion", "FeatureReducer", "chunk_rows", "fixed_signs", "is_sparse",
           "iter_nodes", "propagate", "reduced_tiles", "unit_rows"]
