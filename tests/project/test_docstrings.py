"""Public names are documented in numpydoc form, completely."""
import importlib
import inspect

import pytest

ROOMS = ("graph", "storage", "datasets", "nn", "losses", "optim", "training", "estimators", "evaluate", "plot",
         "errors")
# No docstring, no summary, parameters missing, unknown, out of order or without description, nothing said of what
# comes back, headings in the wrong order or underlined wrongly, no example.
RULES = {"GL06", "GL07", "GL08", "SS01", "SS02", "PR01", "PR02", "PR03", "PR07", "RT01", "YD01", "EX01"}


def public_names():
    for room in ROOMS:
        module = importlib.import_module(f"gnncy.{room}")
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isroutine(thing):
                yield f"gnncy.{room}.{name}"
            if inspect.isclass(thing):
                for method, value in vars(thing).items():
                    if not method.startswith("_") and (inspect.isroutine(value) or isinstance(value, property)):
                        yield f"gnncy.{room}.{name}.{method}"


def test_every_room_says_what_is_public():
    for room in set(ROOMS) - {"errors"}:
        module = importlib.import_module(f"gnncy.{room}")
        assert getattr(module, "__all__", None), f"gnncy.{room} has no __all__"
        assert module.__doc__, f"gnncy.{room} has no docstring"
        assert all(hasattr(module, name) for name in module.__all__)


def test_docstrings():
    validate = pytest.importorskip("numpydoc.validate", reason="needs the docs extra").validate
    complaints = []
    for name in public_names():
        # An example of the whole stands at the class or function; methods need not repeat it.
        rules = RULES - {"EX01"} if name.count(".") > 2 else RULES
        complaints += [f"{name}: {code} {message}" for code, message in validate(name)["errors"] if code in rules]
    assert not complaints, "\n".join(["", *complaints])
