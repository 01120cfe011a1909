"""For every test, in every process that it starts."""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Threads that wait leave their core to the test that runs beside.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Where nothing is built in place, as in a source distribution, what is installed is tested: it
# comes before this folder, which has the examples.
if not any(ROOT.glob("smm_py/_core.*.so")):
    others = [path for path in sys.path if Path(path).resolve() != ROOT]
    sys.path[:] = [*others, str(ROOT)]
    installed = importlib.util.find_spec("smm_py")
    if installed and installed.origin:
        folders = [str(Path(installed.origin).parents[1]), str(ROOT)]
        os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(folders)}
