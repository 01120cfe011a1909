"""python -m tests.reliability [--quick] [--out docs/reliability.md]

Every check runs in a process of its own, so that a crash is a defect that is counted, beside the
fuzzer, which has the other core. Status 1 where there is a defect.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import sys
import threading
import time

from processes import run, run_python

from . import ROOT, arguments, concurrency, faults, fuzzing, interrupts, kills, memory, mutations
from .outcome import Outcome

# name -> what it does, its function, arguments of the quick run, and of the long one
CHECKS = {
    "fuzz": (
        "libFuzzer over the C API, ASan and UBSan (tests/c/fuzz.c)",
        fuzzing.check,
        (60, 0),
        (1320, 1_010_000),
    ),
    "faults": (
        "every allocation failed in turn, from Python",
        faults.check,
        (15, 1_000),
        (120, 20_000),
    ),
    "arguments": ("hostile arguments of the NumPy modules", arguments.check, (5_000,), (100_000,)),
    "files": (
        "mutated weights, files of a run, pictures",
        mutations.check,
        (20, 600),
        (180, 20_000),
    ),
    "threads": (
        "4 Python threads, modules of all kinds, the number of threads changing: same bits",
        concurrency.threads,
        (8, 20_000),
        (60, 200_000),
    ),
    "forks": (
        "children that compute after their parent's threads have: same bits",
        concurrency.forks,
        (10,),
        (300,),
    ),
    "memory": ("memory of many calls, and of small results", memory.check, (20_000,), (100_000,)),
    "interrupts": (
        "SIGINT in a long call, NumPy and PyTorch, forward and backward",
        interrupts.check,
        (4,),
        (32,),
    ),
    "kills": ("SIGKILL at random moments of a training", kills.check, (3,), (50,)),
}


EXAMPLES = """\
examples, from the repository's root:
  # as in CI
  python -m tests.reliability --quick
  # one check, whose counts are printed as JSON
  python -m tests.reliability --quick --only arguments
  # the long run, which writes the page
  python -m tests.reliability --out docs/reliability.md
"""


def in_this_process(name, quick):
    _, function, few, many = CHECKS[name]
    with contextlib.redirect_stdout(io.StringIO()):
        outcome = function(*(few if quick else many))
    print(json.dumps(vars(outcome)))


def in_own_process(name, quick):
    """(outcome, seconds)"""
    begin = time.monotonic()
    flags = ("-W", "ignore", "-X", "faulthandler", "-m", "tests.reliability", "--only", name)
    done = run_python(*flags, *(["--quick"] if quick else []), cwd=ROOT)
    try:
        outcome = Outcome(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        outcome = Outcome()
    if done.returncode:
        told = " ".join(done.stderr.splitlines()[-6:])
        outcome.defect(f"its process ended with status {done.returncode}: {told}")
    return outcome, time.monotonic() - begin


def in_turn(names, quick, found):
    for name in names:
        found[name] = in_own_process(name, quick)
        print(row(name, *found[name]), flush=True)
        for defect in found[name][0].defects:
            print(f"  {defect}", flush=True)


def counted(outcome):
    if outcome.skipped:
        return f"skipped: {outcome.skipped}"
    return ", ".join(f"{number:,} {what}" for what, number in outcome.counts.items())


def row(name, outcome, seconds):
    return f"| {CHECKS[name][0]} | {counted(outcome)} | {seconds:.0f} s | {len(outcome.defects)} |"


def machine():
    import smm_py
    from smm_py._config import processor

    commit = run("git", "describe", "--always", "--dirty", cwd=ROOT).stdout.strip()
    version = f"smm_py {smm_py.__version__}" + (f" ({commit})" if commit else "")
    processors = f"{os.cpu_count()} processors ({processor()})"
    where = f"{platform.system()}, {processors}, instruction set {smm_py._core.simd()[0]}"
    return f"{version}, Python {platform.python_version()}, on {where}, {time.strftime('%Y-%m-%d')}"


def document(found, quick, seconds):
    """The text of docs/reliability.md."""
    rows = "\n".join(row(name, *found[name]) for name in CHECKS if name in found)
    notes = [f"- {note}" for outcome, _ in found.values() for note in outcome.notes]
    defects = [f"- {name}: {d}" for name, (o, _) in found.items() for d in o.defects]
    run_of = "quick" if quick else "long"
    return f"""# Reliability

What the software was made to withstand, by one script, which writes this page:

    python -m tests.reliability --out docs/reliability.md      # this, the long run
    python -m tests.reliability --quick                        # two minutes, in CI

The {run_of} run of {machine()}, in {seconds / 60:.0f} minutes:

| What | How many | How long | Defects |
|---|---|---|---|
{rows}

{chr(10).join(notes)}

Defects:

{chr(10).join(defects) or "none"}

{MEANING}"""


MEANING = """## What is checked

- **The C API** (`tests/c/fuzz.c`): all kinds, gradient modes, precisions, instruction sets, masks,
  indices, given priors, floors of the variance, tolerances, bfloat16 inputs, odd numbers (0,
  denormals, huge, infinite, NaN), every output and gradient asked for or not. Every array lies
  between guard zones. An error is a documented one, and the one that a mistake should give; nothing
  is written before it. The bits are those of a second call and of several threads. Ordinary numbers
  give finite results. The rule of the saved state's size holds. NaN stays in its image. A call that
  is stopped or gets no memory says so. A saved state that is not forward's reads or writes no other
  memory. The core has both sanitizers here, the kernels the address sanitizer;
  `make -C tests/c check-sanitize` has them under both.
- **Allocations**: in C, the one of a call is refused by the fuzzer; from Python, malloc and its kin
  fail in turn (`tests/reliability/refuse.c`) in calls, gradients, constructors, `save` and `load`.
  What comes is MemoryError (or an error of Python's or NumPy's own), nothing leaks from the
  extension, and the next call is right. Several in a row fail in the extension alone: NumPy's
  `errstate` (2.x) crashes upon them.
- **Kills**: every killed run goes on to the bits of one that was not (`tests/kill_check.py`).
- **Arguments and files**: TypeError, ValueError, KeyError or MemoryError, which names the argument
  or the file; of the examples' commands, one line and status 2.
- **SIGINT**: KeyboardInterrupt within a second, and the next call is right.
"""


def make_parser():
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability",
        description="What the software withstands: fuzzing, injected faults, kills, hostile input.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="in two minutes and a half")
    parser.add_argument("--out", help="write the table here")
    parser.add_argument("--only", choices=CHECKS, help="one check, in this process")
    return parser


def main():
    options = make_parser().parse_args()
    if options.only:
        return in_this_process(options.only, options.quick)
    begin, found = time.monotonic(), {}
    print("| What | How many | How long | Defects |\n|---|---|---|---|", flush=True)
    others = [name for name in CHECKS if name != "fuzz"]
    fuzzer = threading.Thread(target=in_turn, args=(["fuzz"], options.quick, found))
    fuzzer.start()
    in_turn(others, options.quick, found)
    fuzzer.join()
    seconds = time.monotonic() - begin
    found = {name: found[name] for name in CHECKS}
    print(f"{machine()}; {seconds:.0f} s")
    if options.out:
        with open(options.out, "w") as file:
            file.write(document(found, options.quick, seconds))
    return sys.exit(any(outcome.defects for outcome, _ in found.values()))


if __name__ == "__main__":
    main()
