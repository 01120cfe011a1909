"""Instruction counts of the kernels, by valgrind's callgrind, beside the recorded ones: `make check-cost`, `make update-cost`.

Counts, not times: they do not depend on what else the machine does, but on the compiler, whose major version is recorded. The AVX2
kernels are counted, as valgrind knows no AVX-512. Exit status 0: within MARGIN of the record; 1: not; 77: cannot be told here.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

RECORD = Path(__file__).with_name("cost.json")
MARGIN = 0.05
LEAST = 100_000  # a kernel below counts in the whole calls alone
WHOLE = ("smm_forward_f32", "smm_backward_f32")


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(77)


def count(program):
    """(compiler, instructions by function): of the kernels as the core calls them, and of the whole calls."""
    if not shutil.which("valgrind"):
        skip("needs valgrind")
    with tempfile.TemporaryDirectory() as folder:
        profile = Path(folder, "profile")
        done = subprocess.run(
            [
                "valgrind",
                "-q",
                "--tool=callgrind",
                f"--callgrind-out-file={profile}",
                "--compress-strings=no",
                "--compress-pos=no",
                program,
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "SMM_SIMD": "avx2"},
        )
        if done.returncode:
            sys.exit(f"{program} under valgrind: status {done.returncode}\n{done.stderr}")
        compiler, _, chosen = done.stdout.strip().rpartition(" ")
        if chosen != "avx2":
            skip(f"needs AVX2, the kernels chosen here are {chosen}")
        return compiler, read(profile.read_text().splitlines())


def read(lines):
    """Inclusive instructions of the calls that leave one part of the core for another (format: valgrind's manual, "Callgrind Format").

    A function's lines start at fl= (its file) and fn=; cfi= (or cfl=), cfn=, calls= and one line "position instructions" are a call.
    """
    found = Counter()
    own = callee_file = callee = ""
    after_calls = False
    for line in lines:
        key, _, value = line.partition("=")
        if after_calls:
            if callee in WHOLE or ("/kernels/" in callee_file and "/core/" in own):
                found[callee] += int(line.split()[1])
            after_calls, callee_file = False, own
        elif key == "fl":
            own = callee_file = value
        elif key in ("cfi", "cfl"):
            callee_file = value
        elif key == "cfn":
            callee = value
        after_calls = key == "calls"
    return {name: n for name, n in sorted(found.items()) if n >= LEAST}


def differences(now, recorded):
    """What is not within MARGIN, in words."""
    for name in sorted({*now, *recorded}):
        new, old = now.get(name, 0), recorded.get(name, 0)
        if not old or not new or abs(new / old - 1) > MARGIN:
            yield f"{name}: {new} instructions, recorded {old}" + (
                f" ({100 * (new / old - 1):+.1f} %)" if old else ""
            )


def main(program, update=False):
    compiler, now = count(program)
    if update:
        RECORD.write_text(json.dumps({"compiler": compiler, "instructions": now}, indent=1) + "\n")
        return 0
    record = json.loads(RECORD.read_text())
    if compiler != record["compiler"]:
        skip(f"counts are recorded for {record['compiler']}, this is {compiler}")
    wrong = list(differences(now, record["instructions"]))
    print(
        "\n".join(wrong)
        if wrong
        else f"{len(now)} counts within {100 * MARGIN:.0f} % of the record"
    )
    if wrong:
        print("If this is meant: make -C tests/c update-cost")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], update="--update" in sys.argv[2:]))
