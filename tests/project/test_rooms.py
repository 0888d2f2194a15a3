"""The house: which room may import which, how big a room may be, and that no kernel is left over."""
import ast
import re
from pathlib import Path

import pytest

import gnncy

ROOT = Path(gnncy.__file__).parent
ROOMS = ("_kernels", "graph", "storage", "datasets", "nn", "losses", "optim", "training", "estimators", "evaluate",
         "plot", "cli")
SHARED = {"errors", "_check", "_threads", "_memory", "_files", "_random", "_linalg"}
OWN = {"__version__"}  # names of the package itself that any module may take from it


def sources():
    """Every module of the package, without the kernels' copies per SIMD level."""
    return [path for path in sorted(ROOT.rglob("*.py*")) if path.suffix in (".py", ".pyx", ".pxd")
            and not path.is_relative_to(ROOT / "_kernels" / "avx2")]


def room_of(path):
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(path.suffix) if first == path.name else first


def absolute(module, level, path):
    """The full name of what ``from <level dots><module> import`` means in the file ``path``."""
    if level == 0:
        return module
    package = ["gnncy", *path.relative_to(ROOT).parts[:-1]]
    return ".".join([*package[:len(package) - level + 1], *([module] if module else [])])


def python_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node.module or "", node.level, path)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            target = node.args[0]
            if isinstance(target, ast.Constant):
                yield absolute(target.value.lstrip("."), len(target.value) - len(target.value.lstrip(".")), path)


def cython_imports(path):
    for line in path.read_text().splitlines():
        if match := re.match(r"\s*from\s+(\.*)([\w.]*)\s+c?import\s+(\w+)", line):
            yield f"{absolute(match[2], len(match[1]), path)}.{match[3]}"
        elif match := re.match(r"\s*c?import\s+([\w.]+)", line):
            yield match[1]


def imported_rooms(path):
    """First names below gnncy that the file imports."""
    names = python_imports(path) if path.suffix == ".py" else cython_imports(path)
    for name in names:
        head, _, rest = name.partition(".")
        if head == "gnncy":
            yield rest.split(".")[0]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path):
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    found = set(imported_rooms(path)) - OWN
    if room in SHARED:
        allowed = SHARED | {"_kernels"}
    elif room == "_doctor":
        allowed = SHARED | {"_kernels"}
    else:
        assert room in ROOMS, f"{room} is not a room: give it a place in the order {' < '.join(ROOMS)}"
        left = set(ROOMS[:ROOMS.index(room)])
        allowed = {room} if room == "_kernels" else left | {room} | SHARED
        if room == "cli":
            allowed |= {"_doctor"}
    assert found <= allowed, f"{path.name} imports {', '.join(sorted(found - allowed))}, which {room} may not"


def test_the_reader_of_imports_sees_each_form(tmp_path):
    path = ROOT / "losses" / "example.py"
    code = ("import gnncy.nn.tensor\nfrom gnncy import graph, __version__\nfrom . import pairs\n"
            "from ..optim import sgd\ndef f():\n    import importlib\n    importlib.import_module('gnncy.training')\n")
    copy = tmp_path / "example.py"
    copy.write_text(code)

    class Placed(type(path)):
        def read_text(self, *args, **kwargs):
            return copy.read_text()

    assert set(imported_rooms(Placed(path))) == {"nn", "graph", "__version__", "losses", "optim", "training"}


def test_a_room_has_at_most_eight_files():
    folders = {path.parent for path in sources()}
    for folder in folders - {ROOT}:
        files = {path.stem for path in sources() if path.parent == folder and path.suffix != ".pxd"} - {"__init__"}
        assert len(files) <= 8, f"{folder.relative_to(ROOT)} holds {len(files)} files: split the room"


def test_every_kernel_has_a_caller():
    used = set()
    for path in sources():
        if path.suffix == ".py":
            used |= {part for name in python_imports(path) if name.startswith("gnncy._kernels.")
                     for part in name.split(".")[2:]}
        elif path.suffix == ".pyx":
            text = path.read_text(encoding="utf-8")
            used |= set(re.findall(r"^from gnncy\._kernels\.\w+\.(\w+) cimport", text, re.M))
    kernels = {path.stem for path in sources() if path.suffix == ".pyx"}
    assert kernels <= used, f"no module imports {', '.join(sorted(kernels - used))}"


def test_kernels_are_taken_through_the_chooser():
    # Naming a level in product code would bypass the choice made at import.
    for path in sources():
        if path.suffix == ".py" and room_of(path) != "_kernels":
            bypass = [n for n in python_imports(path) if re.match(r"gnncy\._kernels\.(base|avx2)\b", n)]
            assert not bypass, f"{path.relative_to(ROOT)} imports {bypass}"
