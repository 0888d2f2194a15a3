"""Compiled kernels. Float kernels exist once per SIMD level; the best that the CPU runs is chosen here.

``GNNCY_SIMD`` forces a level. Kernels check nothing: their callers do.
"""
import importlib
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from gnncy._kernels import cpu  # type: ignore[attr-defined]

_HERE = Path(__file__).parent


def _modules(level: str) -> set[str]:
    # Looks, does not import: importing a level runs its instructions.
    return {f.name.removesuffix(s) for s in EXTENSION_SUFFIXES for f in (_HERE / level).glob(f"*{s}")}


_SIMD = _modules("base")
AVAILABLE = tuple(level for level in cpu.levels() if _SIMD and _modules(level) >= _SIMD)
LEVEL = os.environ.get("GNNCY_SIMD") or AVAILABLE[-1]
if LEVEL not in AVAILABLE:
    raise ImportError(f"GNNCY_SIMD={LEVEL!r} is not offered by this build on this CPU; "
                      f"choose from {', '.join(AVAILABLE)}")


def __getattr__(name: str):
    if name in _SIMD:
        module = importlib.import_module(f"{__name__}.{LEVEL}.{name}")
        globals()[name] = module
        return module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
