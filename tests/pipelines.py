"""Running the examples' pipelines as a user does, for their tests."""

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from examples.shared.command import main

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def command(name, *arguments, launcher=()):
    return [sys.executable, *launcher, "-m", f"examples.{name}", *map(str, arguments)]


def run(name, *arguments, launcher=()):
    return subprocess.run(
        command(name, *arguments, launcher=launcher),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


def run_well(name, *arguments, launcher=()):
    """Its output; it must have ended well."""
    done = run(name, *arguments, launcher=launcher)
    assert done.returncode == 0, done.stderr
    return done.stdout


def result(output):
    """The JSON object in the last line."""
    return json.loads(output.splitlines()[-1])


def check_kill_and_resume(name, options, folder, steps=40, kill_after=13):
    """SIGKILL in the middle of training: the resumed run ends in the same bits, and its metrics in
    the same lines."""
    options = ("train", "--steps", steps, "--checkpoint-every", 5, "--log-every", 1, *options)
    run_well(name, *options, "--out", folder / "whole")
    out = folder / "killed"
    process = subprocess.Popen(
        command(name, *options, "--out", out),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = out / "metrics.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and (
        not metrics.exists() or metrics.read_text().count("\n") < kill_after
    ):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert kill_after <= metrics.read_text().count("\n") < steps
    run_well(name, "train", "--resume", "--out", out)
    assert (out / "model.safetensors").read_bytes() == (
        folder / "whole" / "model.safetensors"
    ).read_bytes()
    assert metrics.read_text() == (folder / "whole" / "metrics.jsonl").read_text()


def check_two_processes(name, options, folder, steps=6, rtol=1e-3, atol=2e-4):
    """Two processes train the model that one trains, at the same global batch."""
    options = ("train", "--steps", steps, "--seed", 3, "--log-every", 1, *options)
    run_well(name, *options, "--out", folder / "one")
    run_well(name, *options, "--out", folder / "two", launcher=TORCHRUN)
    losses = [
        [
            json.loads(line)["loss"]
            for line in (folder / d / "metrics.jsonl").read_text().splitlines()
        ]
        for d in ("one", "two")
    ]
    weights = [
        torch.load(folder / d / "checkpoint.pt", weights_only=True)["model"] for d in ("one", "two")
    ]
    assert len(losses[0]) == steps and np.allclose(*losses, rtol=rtol)
    for key, value in weights[0].items():
        assert torch.allclose(value, weights[1][key], atol=atol), key


def check_error(name, arguments, message, folder, capsys):
    """A user's mistake: status 2, and one line that says what."""
    pipeline = importlib.import_module(f"examples.{name}.__main__").PIPELINE
    out = () if "--out" in arguments else ("--out", folder / "x")
    assert main(pipeline, [*map(str, arguments), *map(str, out)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and message in line and line.count("\n") == 1, line
