"""Passes over all nodes, out of core: smoothing over the graph, reduction of wide features."""
from gnncy.storage.passes.diffuse import Diffusion, diffuse_tiles
from gnncy.storage.passes.reduce import (
    CHUNK,
    OVERSAMPLING,
    FeatureReducer,
    chunk_rows,
    fixed_signs,
    is_sparse,
    iter_nodes,
    reduced_tiles,
    unit_rows,
)
from gnncy.storage.passes.stream import PassPlan, propagate, sign_features
from gnncy.storage.passes.tiles import TILE, ColumnTiles

__all__ = ["CHUNK", "OVERSAMPLING", "TILE", "ColumnTiles", "Diffusion", "FeatureReducer", "PassPlan", "chunk_rows",
           "diffuse_tiles", "fixed_signs", "is_sparse", "iter_nodes", "propagate", "reduced_tiles", "sign_features",
           "unit_rows"]
