"""Learnable tables on disk: rows that are changed in place, each beside its optimizer's state."""
from gnncy.storage.tables.table import EmbeddingTable

__all__ = ["EmbeddingTable"]
