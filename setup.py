"""What pyproject.toml cannot say: the extension modules and how each is compiled.

GNNCY_BUILD picks the build:
  release   (default) all checks off, -O3, every SIMD level
  debug     checks of bounds (a negative index is out of them), None and initialisation on, base level only
  sanitize  AddressSanitizer and UndefinedBehaviorSanitizer, base level only; see tools/sanitize
  coverage  line tracing for Cython.Coverage, base level only
GNNCY_ANNOTATE=1 writes Cython's annotated HTML beside every source.
"""
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

KERNELS = Path("gnncy/_kernels")
BUILD = os.environ.get("GNNCY_BUILD", "release")
MSVC = sys.platform == "win32"
X86_ELF = platform.machine() in ("x86_64", "AMD64") and sys.platform == "linux"

LEVELS = {"base": []}
if BUILD == "release" and X86_ELF:
    LEVELS["avx2"] = ["-mavx2", "-mfma"]


def compiler_is_gcc():
    command = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    try:
        text = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return False
    return "Free Software Foundation" in text


# What gcc and clang need to vectorise a root (the first) and a sum (the other three, all or nothing).
# -ffast-math is not the same: on the link line it turns subnormals off for the whole process.
FLOAT = [] if MSVC else ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"]
if not MSVC and compiler_is_gcc():
    # A loop peeled until its array is aligned would sum in an order that depends on the array's address.
    FLOAT += ["--param", "vect-max-peeling-for-alignment=0"]

DIRECTIVES = {"language_level": 3, "boundscheck": False, "wraparound": False, "initializedcheck": False,
              "cdivision": True, "embedsignature": True, "freethreading_compatible": True}
macros, linked = [], []
if BUILD == "release":
    cflags = ["/O2"] if MSVC else ["-O3", "-g0"]
elif BUILD == "debug":
    cflags = ["/Od"] if MSVC else ["-O1", "-g", "-UNDEBUG"]
    DIRECTIVES |= {"boundscheck": True, "initializedcheck": True, "nonecheck": True}
elif BUILD == "sanitize":
    linked = ["-fsanitize=address,undefined"]
    cflags = ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined", *linked]
elif BUILD == "coverage":
    cflags, macros = (["/Od"] if MSVC else ["-O0"]), [("CYTHON_TRACE_NOGIL", "1")]
    DIRECTIVES |= {"linetrace": True}
else:
    raise SystemExit(f"GNNCY_BUILD={BUILD!r}: choose release, debug, sanitize or coverage")

# Cython and setuptools rebuild by time stamp, not by flags, and a release build leaves levels behind that
# would be preferred over a debug build's base. So a change of build starts clean.
STAMP = Path("build/gnncy-build")
if not STAMP.exists() or STAMP.read_text() != BUILD:
    for pattern in ("*.c", "*.so", "*.pyd"):
        for old in KERNELS.rglob(pattern):
            old.unlink()
    STAMP.parent.mkdir(exist_ok=True)
    STAMP.write_text(BUILD)


def copy_if_changed(source, target):
    if not target.exists() or target.read_bytes() != source.read_bytes():
        shutil.copyfile(source, target)


def extension(name, source, extra=()):
    return Extension(f"gnncy._kernels.{name}", [str(source)], define_macros=macros,
                     extra_compile_args=[*cflags, *extra], extra_link_args=linked)


def dotted(source):
    return ".".join(source.relative_to(KERNELS).with_suffix("").parts)


# Integer loops, I/O and CPU detection are compiled once: _kernels/*.pyx and _kernels/<room>/*.pyx.
# Float loops stand in _kernels/base/<room> and are compiled once per SIMD level.
plain = [path for path in KERNELS.rglob("*.pyx") if path.relative_to(KERNELS).parts[0] not in ("base", "avx2")]
extensions = [extension(dotted(source), source) for source in sorted(plain)]
for level, flags in LEVELS.items():
    for source in sorted((KERNELS / "base").rglob("*.p[yx][xd]")):
        target = KERNELS / level / source.relative_to(KERNELS / "base")
        if level != "base":
            copy_if_changed(source, target)
        if source.suffix == ".pyx":
            extensions.append(extension(dotted(target), target, [*FLOAT, *flags]))
# One copy of Cython's memoryview code instead of one in every module.
extensions.append(extension("_cyutility", KERNELS / "_cyutility.c"))

setup(ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES,
                            annotate=bool(os.environ.get("GNNCY_ANNOTATE")),
                            shared_utility_qualified_name="gnncy._kernels._cyutility"),
      options={"build_ext": {"parallel": os.cpu_count()}})
