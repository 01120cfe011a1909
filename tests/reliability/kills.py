"""SIGKILL at random moments of a training: tests/kill_check.py."""

import re

from processes import run_python

from . import ROOT, TESTS
from .outcome import Outcome

RUN = "--steps 30 --image-size 32 --pictures 24 --batch-size 4 --checkpoint-every 5"


def check(kills):
    outcome = Outcome()
    command = (TESTS / "kill_check.py", "set_prediction", "--kills", kills, "--", *RUN.split())
    done = run_python(*command, cwd=ROOT)
    found = re.search(r"(\d+) kills.*; (\d+) runs reached", done.stdout)
    if done.returncode or not found:
        outcome.defect(f"status {done.returncode}: {' '.join(done.stderr.splitlines()[-3:])}")
        return outcome
    outcome.count("kills", int(found[1]))
    outcome.count("runs to their end", int(found[2]))
    return outcome
