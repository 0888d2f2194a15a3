"""Compiled kernels. Float kernels exist once per SIMD level; the best that the CPU runs is chosen here.

``GNNCY_SIMD`` forces a level. Kernels check nothing: their callers do.
"""
import importlib
import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

_HERE = Path(__file__).parent

try:
    from gnncy._kernels import cpu  # type: ignore[attr-defined]
except ImportError as error:
    raise ImportError(f"no compiled kernels in {_HERE}: if this is a checkout, run Python in another folder, where it "
                      f"finds the installed gnncy, or compile them here: pip install -e .") from error


def _modules(level: str) -> dict[str, str]:
    """Where each module of a level is; looks, does not import: importing a level runs its instructions."""
    return {f.name.removesuffix(s): f"{__name__}.{level}.{f.parent.name}.{f.name.removesuffix(s)}"
            for s in EXTENSION_SUFFIXES for f in (_HERE / level).glob(f"*/*{s}")}


_BASE = _modules("base")
AVAILABLE = tuple(level for level in cpu.levels() if _BASE and _modules(level).keys() >= _BASE.keys())
LEVEL = os.environ.get("GNNCY_SIMD") or AVAILABLE[-1]
if LEVEL not in AVAILABLE:
    raise ImportError(f"GNNCY_SIMD={LEVEL!r} is not offered by this build on this CPU; "
                      f"choose from {', '.join(AVAILABLE)}")


_CHOSEN = _modules(LEVEL)


def at_level(level: str, name: str):
    """The float kernel module ``name`` of a SIMD level."""
    return importlib.import_module(_modules(level)[name])


def __getattr__(name: str):
    if name in _CHOSEN:
        module = globals()[name] = importlib.import_module(_CHOSEN[name])
        return module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
