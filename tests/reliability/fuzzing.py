"""libFuzzer over the C API: tests/c/fuzz.c, of Clang."""

import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from processes import run

from . import TESTS
from .outcome import Outcome

C = TESTS / "c"
NEEDS = "needs Clang with libFuzzer (Debian: clang libclang-rt-14-dev; libomp-dev for threads)"
# waiting threads of OpenMP do not take the time of those that work
QUIET = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}


def build(folder):
    """The program, or None where Clang's fuzzer is not there."""
    empty = folder / "empty.c"
    empty.write_text(
        "int LLVMFuzzerTestOneInput(const char *d, unsigned long n);\n"
        "int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return !d && n; }\n"
    )
    flags = ("-fsanitize=fuzzer,address", empty, "-o", folder / "empty")
    if not shutil.which("clang") or run("clang", *flags).returncode:
        return None
    done = run("make", "-s", "-j2", "-C", C, "fuzz")
    if done.returncode:
        raise RuntimeError(done.stderr)
    return C / "bin" / "fuzz"


def seeds(folder, seed, count=200):
    """Random inputs to begin with."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(count):
        (folder / str(i)).write_bytes(rng.bytes(int(rng.integers(8, 96))))
    return folder


def number(pattern, text):
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def fuzz(program, folder, seconds, seed, outcome):
    """One round."""
    folder.mkdir()
    always = ("-max_len=96", "-len_control=0", "-entropic=0", "-print_final_stats=1")
    limits = ("-timeout=120", "-rss_limit_mb=4096", f"-max_total_time={seconds}")
    command = (program, *always, *limits, f"-seed={seed}", seeds(folder / "corpus", seed))
    done = run(*command, cwd=folder, env={**os.environ, **QUIET})
    text = done.stderr
    outcome.count("calls", number(r"\ncalls: (\d+)", text))
    outcome.count("calls without memory", number(r"\nfaults: (\d+)", text))
    outcome.count("inputs", number(r"number_of_executed_units: (\d+)", text))
    if done.returncode:
        kept = [p for p in folder.iterdir() if p.name.startswith(("crash", "timeout", "oom"))]
        data = kept[0].read_bytes().hex() if kept else "none"
        told = re.findall(r"(?:PROPERTY|CASE|ERROR|runtime error).*", text)
        outcome.defect(f"{' | '.join(told[:3])}; input {data}")


def check(seconds, calls, seed=1):
    """Until it has made that many calls (0: no limit), or that many seconds have passed.

    In rounds of a minute: from one on, inputs grow that are slow.
    """
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name:
        program = build(Path(name))
        if program is None:
            outcome.skipped = NEEDS
            return outcome
        end = time.monotonic() + seconds
        while (left := round(end - time.monotonic())) > 0:
            if outcome.defects or calls and outcome.counts.get("calls", 0) >= calls:
                break
            fuzz(program, Path(name, str(seed)), min(60, left), seed, outcome)
            seed += 1
    return outcome
