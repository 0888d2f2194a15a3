"""Python started in a checkout finds the sources there, before what was installed."""
import shutil
import subprocess
import sys
from pathlib import Path

import gnncy


def test_sources_that_were_not_compiled_say_what_to_do(tmp_path):
    kernels = tmp_path / "gnncy" / "_kernels"
    kernels.mkdir(parents=True)
    (tmp_path / "gnncy" / "__init__.py").touch()
    shutil.copy(Path(gnncy.__file__).parent / "_kernels" / "__init__.py", kernels)
    done = subprocess.run([sys.executable, "-c", "import gnncy._kernels"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ImportError: no compiled kernels in {kernels}" in done.stderr and "pip install -e ." in done.stderr
