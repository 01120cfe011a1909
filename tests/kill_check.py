"""Kill a training run again and again, resume it each time, and compare it with an undisturbed one.

    python tests/kill_check.py set_prediction --kills 20 -- --steps 600 --image-size 32 --pictures
    400 --batch-size 8

Every process gets SIGKILL at a random moment (while it imports, draws pictures, trains or writes).
Where a run comes to its end, its weights and metrics must be those of the undisturbed run, byte for
byte; then another begins, until all kills are spent. Too slow for the suite, which has one kill.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start(pipeline, *options):
    command = [
        sys.executable,
        "-m",
        f"examples.{pipeline}",
        "train",
        "--threads",
        "1",
        *map(str, options),
    ]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(errors)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pipeline")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    own, _, rest = (" ".join(sys.argv[1:]) + " ").partition(" -- ")
    arguments = parser.parse_args(own.split())
    options = rest.split()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        begin = time.time()
        finish(start(arguments.pipeline, *options, "--out", whole))
        length = time.time() - begin
        kills, ends, reached = 0, 0, []
        while True:
            resume = ["--resume"] if (killed / "config.json").exists() else options
            process = start(arguments.pipeline, *resume, "--out", killed)
            try:
                process.wait(rng.uniform(0, length) if kills < arguments.kills else None)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                metrics = killed / "metrics.jsonl"
                reached.append(metrics.read_text().count("\n") if metrics.exists() else 0)
                continue
            finish(process)
            ends += 1
            differ = [
                n
                for n in ("model.safetensors", "metrics.jsonl")
                if (whole / n).read_bytes() != (killed / n).read_bytes()
            ]
            if differ:
                sys.exit(f"{differ[0]} differs from the undisturbed run's after {kills} kills")
            if kills == arguments.kills:
                break
            shutil.rmtree(killed)
    print(
        f"{kills} kills, at these lines of metrics: {reached}; {ends} runs came to their end, "
        "each equal to the undisturbed one"
    )


if __name__ == "__main__":
    main()
