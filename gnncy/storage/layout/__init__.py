"""How the rows of a store lie in its files: checksums by extents, rewriting in another order, other layouts."""
from gnncy.storage.layout.checksums import VerifyReport

__all__ = ["VerifyReport"]
