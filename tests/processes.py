"""Processes that tests start: a busy machine fails none of them, and none outlives the suite."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A process or a wait this long hangs. No test may depend on how fast the machine is.
HANG = float(os.environ.get("SMM_TEST_HANG", 3600))
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
GRACE = 60  # seconds in which a process that is told to end stops its own children
# Where the worker that runs a test is killed, the kernel tells its children to end (Linux alone).
_TIED = ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()


@contextlib.contextmanager
def started(*command, **options):
    """A process (arguments of `Popen`) that is ended, with what it started, when the block is left.

    It has a process group of its own. SIGTERM comes first, upon which torchrun ends its workers,
    which are outside of that group.
    """
    command = [*_TIED, *map(str, command)]
    process = subprocess.Popen(command, process_group=0, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(*command, **options):
    """`subprocess.run` of a command whose output is captured as text."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with started(*command, **{**pipes, **options}) as process:
        output = process.communicate(timeout=HANG)
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


def run_python(*arguments, **options):
    return run(sys.executable, *arguments, **options)


def wait_until(condition, process):
    """Wait for a condition that a running process brings about, however long that takes."""
    end = time.monotonic() + HANG
    while not condition():
        assert process.poll() is None, f"it ended with status {process.returncode}"
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.01)
