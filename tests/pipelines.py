"""Running the examples' pipelines as a user does, for their tests."""

import importlib
import json
import subprocess
import sys

import numpy as np
import processes
import torch
from processes import ROOT, TORCHRUN

from examples.shared.command import main


def reached(net):
    """Name -> parameter of what a loss reaches: not the drawn state, with gradient="implicit"."""
    return {
        name: p
        for name, p in net.named_parameters()
        if p.requires_grad and not name.endswith(("_mu", "_logsigma"))
    }


def run(name, *arguments, launcher=()):
    return processes.run_python(*launcher, "-m", f"examples.{name}", *arguments, cwd=ROOT)


def run_well(name, *arguments, launcher=()):
    """Its output; it must have ended well."""
    done = run(name, *arguments, launcher=launcher)
    assert done.returncode == 0, done.stderr
    return done.stdout


def result(output):
    """The JSON object in the last line."""
    return json.loads(output.splitlines()[-1])


def check_kill_and_resume(name, options, folder, steps=40, kill_after=13):
    """SIGKILL in the middle of training: the resumed run ends in the same bits and metrics."""
    options = ("train", "--steps", steps, "--checkpoint-every", 5, "--log-every", 1, *options)
    run_well(name, *options, "--out", folder / "whole")
    out = folder / "killed"
    metrics = out / "metrics.jsonl"
    command = (sys.executable, "-m", f"examples.{name}", *options, "--out", out)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with processes.started(*command, cwd=ROOT, **quiet) as process:
        processes.wait_until(
            lambda: metrics.exists() and metrics.read_text().count("\n") >= kill_after, process
        )
        process.kill()
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
    capsys.readouterr()
    assert main(pipeline, [*map(str, arguments), *map(str, out)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and message in line and line.count("\n") == 1, line
