"""gnncy: contrastive node embeddings on a CPU, for graphs whose features are bigger than memory."""
import importlib
from importlib.metadata import version as _version

__version__ = _version("gnncy")

_ROOMS = ("datasets", "errors", "estimators", "evaluate", "graph", "losses", "nn", "optim", "plot", "storage",
          "training")
_NAMES = {
    "FeatureStorage": "storage",
    "GnncyError": "errors",
    "GraphEncoder": "estimators",
    "GraphFormatError": "errors",
    "LinkPredictor": "estimators",
    "MemoryLimitError": "errors",
    "NodeClassifier": "estimators",
    "NodeEmbedding": "estimators",
    "NotFittedError": "errors",
    "StorageError": "errors",
    "show_versions": "_doctor",
}
__all__ = [*_NAMES, *_ROOMS]


def __getattr__(name: str):
    # Rooms are imported when first used, so that ``import gnncy`` stays quick.
    if name in _ROOMS:
        value = importlib.import_module(f"gnncy.{name}")
    elif name in _NAMES:
        value = getattr(importlib.import_module(f"gnncy.{_NAMES[name]}"), name)
    else:
        raise AttributeError(f"module 'gnncy' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
