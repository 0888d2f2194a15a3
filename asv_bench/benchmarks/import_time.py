"""What a user waits for at the prompt."""
import subprocess
import sys


class ImportTime:
    params = ["gnncy", "gnncy.estimators", "gnncy.cli", "numpy"]
    param_names = ["module"]
    timeout = 120
    repeat = (3, 10, 10.0)
    number = 1

    def time_import(self, module):
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
