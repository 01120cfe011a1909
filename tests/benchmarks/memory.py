"""Peak memory of one forward and backward pass against N, each in a process of its own (Linux).

`python -m tests.benchmarks.memory NAME N` prints the most bytes that the process needed beyond what
it held before (inputs, parameters, and what a call with 64 inputs has cached) and beyond the slots
and gradients that it returned.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from . import contenders
from .measure import set_threads
from .problem import Problem, Shape

STATUS = Path("/proc/self/status")
NAMES = {
    contenders.OURS: 2**20,
    contenders.RECOMPUTE: 2**20,
    "PyTorch eager, expanded": 2**18,
    "PyTorch eager, broadcast": 2**15,
}  # N up to which
SIZES = [2**i for i in range(10, 21)]


def kibibytes(key):
    """VmRSS (resident now) or VmHWM (at most since the last `forget_peak`) of this process."""
    return next(
        int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(key)
    )


def forget_peak():
    """Let VmHWM begin again at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(name, n):
    set_threads(2)
    contenders.make(
        name, Problem("SlotMixture", Shape(1, 64, 11, 64, 128, 3))
    ).both()  # code and threads are loaded
    contender = contenders.make(name, Problem("SlotMixture", Shape(1, n, 11, 64, 128, 3)))
    forget_peak()
    before = kibibytes("VmRSS")
    slots, grads = contender.both()
    peak = kibibytes("VmHWM")
    returned = sum(a.nbytes for a in (slots, *grads.values()))
    return max(0, (peak - before) * 1024 - returned)


def against_inputs(most):
    """Rows of name, N and bytes for N up to `most`; none where /proc tells nothing."""
    if not STATUS.exists():
        return
    for name, largest in NAMES.items():
        for n in SIZES:
            if n <= min(largest, most):
                done = subprocess.run(
                    [sys.executable, "-m", __spec__.name, name, str(n)],
                    capture_output=True,
                    text=True,
                )
                if done.returncode:
                    raise RuntimeError(f"memory of {name} at N={n}: {done.stderr}")
                yield {"name": name, "N": n, "bytes": int(done.stdout)}


if __name__ == "__main__":
    print(measure(sys.argv[1], int(sys.argv[2])))
