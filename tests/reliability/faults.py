"""Every allocation failed in turn, of what the NumPy modules do: calls, gradients, files, and the
extension's functions below them. The C core makes one allocation a call, which fuzz.c refuses.
"""

import contextlib
import ctypes
import gc
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from processes import run, run_python

from . import ROOT
from .outcome import Outcome, last_line

SOURCE = Path(__file__).with_name("refuse.c")
NAMES = ("sa", "smm", "reference", "kmeans", "gmm")


def operations(name, folder):
    """What -> a function without arguments, which returns arrays by name."""
    import numpy as np
    from cases import build, inputs

    import smm_py

    module = build(name, dtype="float32")
    x, call = inputs(module, 2, 9, masks=True)
    out = module(x, attention=True, history=True, **call)
    d_slots = np.ones_like(out.slots)
    path = folder / f"{name}.safetensors"
    module.save(path)
    kind = type(module)

    def forward():
        found = module(x, attention=True, history=True, **call)
        return {"slots": found.slots, "attention": found.attention}

    def drawn():
        return {"slots": module(x, seed=3).slots}

    def save():
        module.save(path)
        return {"file": np.frombuffer(path.read_bytes(), np.uint8)}

    asked = dict.fromkeys(("save", "attention", "history", "state"), True)

    def extension():
        arguments = out._call["arguments"]
        found = smm_py._core.forward(module._spec.config, **arguments, **asked)
        given = {"saved": found.saved, "d_slots": d_slots, "d_attention": found.attention}
        grads = smm_py._core.backward(module._spec.config, **arguments, **given)
        return {"slots": found.slots, "x": grads.x}

    return {
        "call": forward,
        "drawn call": drawn,
        "backward": lambda: module.backward(out, d_slots),
        "constructor": lambda: dict(kind(**module.options).parameters),
        "load": lambda: dict(kind.load(path).parameters),
        "save": save,
        "extension": extension,
    }


def place_of(error):
    return traceback.extract_tb(error.__traceback__)[-1]


def foreign(error):
    """Whether Python or NumPy raised it, which do not always tell that memory is missing."""
    place = place_of(error)
    own = "smm_py" in place.filename and place.line.startswith("raise")
    return not own and "_core" not in place.line


def equal(a, b):
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def sweep(library, work, what, outcome, more, stride):
    """Refuse the n-th allocation of `work`, for each n (or every stride-th)."""
    expected, n = work(), 0
    while True:
        try:
            library.refuse(n, more)
            found = work()
            error = None
        except BaseException as caught:
            found, error = None, caught
        failed = library.relent()
        if error is not None and not isinstance(error, MemoryError):
            if foreign(error):
                outcome.count("of which Python or NumPy raised another error")
            else:
                outcome.defect(f"{what}, allocation {n}: {last_line(error)}")
        if found is not None:
            outcome.expect(equal(found, expected), f"{what}, allocation {n}: another result")
        error = found = None
        if not failed:
            return
        outcome.count("failed allocations", failed)
        outcome.expect(equal(work(), expected), f"{what}, after allocation {n}: another result")
        n += stride


def find_leaks(library, work, what, outcome, repeats=20):
    """Of the extension: blocks that a failed call does not give back, each time."""
    n = failed = 0
    while failed or n == 0:
        for i in range(repeats + 3):
            if i == 3:
                gc.collect()
                before = library.blocks_now()
            with contextlib.suppress(MemoryError):
                library.refuse(n, 0)
                work()
            failed = library.relent()
        gc.collect()
        grown = library.blocks_now() - before
        outcome.expect(
            grown < repeats * 3 // 4,
            f"{what}, allocation {n}: {grown} blocks not given back in {repeats} failures",
        )
        outcome.count("failed allocations of the extension, looked at for leaks", repeats)
        n += 1


def child(seconds, most, library):
    """All operations, until enough allocations have failed; prints the outcome."""
    library = ctypes.CDLL(library)
    library.refuse.argtypes = (ctypes.c_long, ctypes.c_long)
    library.relent.restype = library.blocks_now.restype = ctypes.c_long
    outcome, begin = Outcome(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        work = {
            f"{name} {what}": function
            for name in NAMES
            for what, function in operations(name, Path(folder)).items()
        }
        done = {}
        # one, and several in a row, but of the extension alone: NumPy's errstate crashes upon these
        for more in (0, 3, 40):
            for what, function in work.items():
                if more and not what.endswith("extension"):
                    continue
                if (
                    time.monotonic() - begin > seconds
                    or outcome.counts.get("failed allocations", 0) > most
                ):
                    break
                stride = 1 if most > 5000 else 11
                print(f"at {what}, {more + 1} in a row", file=sys.stderr, flush=True)
                sweep(library, function, what, outcome, more, stride)
                done[what] = function
        for name in NAMES[:: 1 if most > 5000 else 4]:
            what = f"{name} extension"
            find_leaks(library, work[what], what, outcome)
    print(json.dumps(vars(outcome)))


def check(seconds, most):
    outcome = Outcome()
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        outcome.skipped = "needs a C compiler and glibc"
        return outcome
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "refuse.so")
        built = run(compiler, "-shared", "-fPIC", "-O1", "-w", SOURCE, "-o", library)
        if built.returncode:
            outcome.skipped = f"needs glibc: {built.stderr.strip()}"
            return outcome
        environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc"}
        call = f"faults.child({seconds}, {most}, {str(library)!r})"
        command = f"from tests.reliability import faults; {call}"
        done = run_python("-c", command, cwd=ROOT, env=environment)
    if done.returncode:
        outcome.defect(f"status {done.returncode}: {' '.join(done.stderr.splitlines()[-3:])}")
        return outcome
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))
