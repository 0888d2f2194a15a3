"""Public names are documented in numpydoc form, completely."""
import dataclasses
import importlib
import inspect

import pytest

ROOMS = ("graph", "storage", "storage.passes", "storage.plans", "storage.policies", "storage.tables", "datasets", "nn",
         "nn.checkpointing", "losses", "optim", "optim.compression", "training", "training.continual",
         "training.phases", "estimators", "evaluate", "plot", "errors")
BRIEF = {"nn", "storage.passes", "storage.plans", "storage.policies"}
# Sections in the wrong order or underlined wrongly, no summary, parameters that do not exist or stand in another order.
SOUND = {"GL06", "GL07", "SS01", "PR02", "PR03"}
# No docstring, parameters that are not named, nothing said of what comes back or is yielded, no example.
COMPLETE = SOUND | {"GL08", "PR01", "RT01", "YD01", "EX01"}


def public_names():
    """Each public name with the rules that hold for it."""
    for room in ROOMS:
        module = importlib.import_module(f"gnncy.{room}")
        # Operations and layers with the names and arguments of PyTorch, and the inner parts of the cold tier, may have
        # a sentence.
        complete = SOUND | {"GL08"} if room in BRIEF else COMPLETE
        for name in getattr(module, "__all__", ()):
            thing, full = getattr(module, name), f"gnncy.{room}.{name}"
            if inspect.isroutine(thing):
                yield full, complete
            elif inspect.isclass(thing):
                # Records of results have attributes, and no example of making one.
                record = dataclasses.is_dataclass(thing) or issubclass(thing, tuple)
                yield full, SOUND | {"GL08"} if record else complete
                for method, value in vars(thing).items():
                    if not method.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
                        yield f"{full}.{method}", SOUND


def test_every_room_says_what_is_public():
    for room in set(ROOMS) - {"errors"}:
        module = importlib.import_module(f"gnncy.{room}")
        assert getattr(module, "__all__", None), f"gnncy.{room} has no __all__"
        assert module.__doc__, f"gnncy.{room} has no docstring"
        assert all(hasattr(module, name) for name in module.__all__)


def test_docstrings():
    validate = pytest.importorskip("numpydoc.validate", reason="needs the docs extra").validate
    complaints = [f"{name}: {code} {message}" for name, rules in public_names()
                  for code, message in validate(name)["errors"] if code in rules]
    assert not complaints, "\n".join(["", *complaints])
