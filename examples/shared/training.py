"""The training loop that the examples share: steps, schedule, checkpoints, metrics, several processes.

What a step does is a function of (seed, step) and of the weights alone, so a run that is killed and
resumed ends in the same bits, and several processes train what one would (but for dropout, which each draws for its own share).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from .config import MOST
from .files import first_line, write_atomically
from .schedules import RATES, UNKNOWN


def rank_and_world():
    """This process's number and how many there are (torchrun sets both up)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def start_processes(device):
    """Join the group that torchrun started, if it did; returns the device of this process."""
    if "RANK" in os.environ and not dist.is_initialized():
        # Its functions' defaults are the group of the moment of the import, which DistributedDataParallel would do later:
        # then nothing ends that group's threads, and the interpreter's end may abort in them.
        from torch.distributed.nn import functional  # noqa: F401

        cuda = torch.device(device).type == "cuda"
        dist.init_process_group("nccl" if cuda else "gloo")
        if cuda:
            return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(device)


def read_checkpoint(out):
    """What `Loop` saved in the folder, None where there is none yet; ValueError, naming the file, if that is damaged."""
    path = Path(out) / "checkpoint.pt"
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"checkpoint {path} cannot be read: {first_line(error)}") from error
    if not isinstance(state, dict) or not {"model", "optimizer", "step", "seconds"} <= set(state):
        raise ValueError(f"{path} is not the checkpoint of a run")
    return state


class Loop:
    """Train `model` for `config.steps` steps, from the checkpoint in `out` if there is one.

    Parameters
    ----------
    model : module; called by `loss`.
    config : has steps (None: from minutes; the number is then recorded in DIR/config.json), minutes, lr, schedule,
        clip (None: gradients as they are), clip_norm, batch_size, log_every, checkpoint_every, evaluate_every.
    loss : (model, step, indices) -> scalar for the samples `indices` of this process.
    evaluate : (model, steps done) -> dict for the log, called now and then by the first process; its floats are shown.
    groups : list of (parameters, rate), optional. rate(config, step) is the learning rate of these parameters,
        whose gradients are clipped together; all parameters and config.schedule's if not given.
    """

    def __init__(self, model, config, out, loss, evaluate, groups=None):
        self.model, self.config, self.out = model, config, Path(out)
        self.loss, self.evaluate = loss, evaluate
        self.rank, self.world = rank_and_world()
        if config.batch_size % self.world:
            raise ValueError(
                f"batch_size must be a multiple of the {self.world} processes, got {config.batch_size}"
            )
        self.trained = model
        if self.world > 1:
            self.trained = nn.parallel.DistributedDataParallel(model)
        self.groups = groups or [
            ([p for p in model.parameters() if p.requires_grad], RATES[config.schedule])
        ]
        self.start()

    def start(self):
        self.step, self.seconds = 0, 0.0
        self.optimizer = torch.optim.Adam(
            [{"params": parameters} for parameters, _ in self.groups], lr=self.config.lr
        )

    # -- a step --------------------------------------------------------------------------------

    def learning_rate(self, step, group=0):
        return self.groups[group][1](self.config, step)

    def indices(self, step):
        """Numbers of the samples that this process sees in a step, out of an endless sequence."""
        share = self.config.batch_size // self.world
        first = step * self.config.batch_size + self.rank * share
        return range(first, first + share)

    def one_step(self):
        for number, group in enumerate(self.optimizer.param_groups):
            group["lr"] = self.learning_rate(self.step, number)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.trained, self.step, self.indices(self.step))
        loss.backward()
        if self.config.clip is not None:
            for parameters, _ in self.groups:
                nn.utils.clip_grad_norm_(parameters, self.config.clip, self.config.clip_norm)
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def measure_steps(self):
        """Fix the number of steps so that training ends in about config.minutes, by timing some as they are late in a run."""
        start = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.step = UNKNOWN
        times = []
        for _ in range(12):
            begin = time.perf_counter()
            float(self.one_step())  # waits for a device
            times.append(time.perf_counter() - begin)
        seconds = torch.tensor(sorted(times[4:])[4])
        if self.world > 1:
            dist.broadcast(seconds, 0)
        self.config.steps = max(1, min(MOST, int(self.config.minutes * 60 / float(seconds))))
        self.model.load_state_dict(start)
        self.start()

    # -- a run ---------------------------------------------------------------------------------

    def run(self):
        """Train to the end."""
        self.load()
        if self.config.steps is None:
            self.measure_steps()
            if self.rank == 0:
                self.config.save(self.out / "config.json")
        result, begin, since = {}, time.perf_counter(), self.step
        with tqdm(
            total=self.config.steps,
            initial=self.step,
            disable=self.rank > 0,
            unit="step",
            smoothing=0.05,
        ) as bar:
            while self.step < self.config.steps:
                before = time.perf_counter()
                loss = self.one_step()
                self.seconds += time.perf_counter() - before
                bar.update()
                last = self.step == self.config.steps
                if self.step % self.config.log_every == 0 or last:
                    pictures = (
                        (self.step - since) * self.config.batch_size / (time.perf_counter() - begin)
                    )
                    if self.world > 1:
                        dist.all_reduce(loss)
                        loss /= self.world
                    if not torch.isfinite(loss):
                        raise FloatingPointError(
                            f"the loss is {float(loss)} at step {self.step}; {self.kept()}"
                        )
                    line = {
                        "step": self.step,
                        "loss": float(loss),
                        "lr": self.optimizer.param_groups[0]["lr"],
                    }
                    if self.rank == 0 and (self.step % self.config.evaluate_every == 0 or last):
                        result = self.evaluate(self.model, self.step)
                        line.update(result)
                    self.log(line)
                    shown = {
                        name: f"{value:.3g}"
                        for name, value in result.items()
                        if isinstance(value, float)
                    }
                    bar.set_postfix(
                        {"loss": f"{float(loss):.4f}", **shown, "pictures/s": f"{pictures:.0f}"}
                    )
                if self.step % self.config.checkpoint_every == 0 or last:
                    self.save()

    def log(self, line):
        if self.rank == 0:
            with open(self.out / "metrics.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")

    def save(self):
        """Weights and checkpoint, each complete at any moment; the checkpoint last, so that what is resumed writes newer weights."""
        model = self.model.state_dict()
        for name, values in model.items():
            if not torch.isfinite(values).all():
                raise FloatingPointError(
                    f"{name} is not finite after step {self.step}; {self.kept()}"
                )
        if self.rank:
            return
        state = {
            "model": model,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }  # spent in steps
        weights = {k: v.contiguous() for k, v in model.items()}
        write_atomically(
            self.out / "model.safetensors",
            lambda path: save_file(weights, path, {"config": self.config.without_places()}),
        )
        write_atomically(self.out / "checkpoint.pt", lambda path: torch.save(state, path))

    def kept(self):
        return f"{self.out} {'keeps the last' if (self.out / 'checkpoint.pt').exists() else 'has no'} checkpoint"

    def load(self):
        """Go on from the checkpoint; metrics logged after it are dropped, as they will come again."""
        state = read_checkpoint(self.out)
        if state:
            try:
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
            except Exception as error:
                raise ValueError(
                    f"checkpoint in {self.out} is of another model: {first_line(error)}"
                ) from error
            self.step, self.seconds = state["step"], state["seconds"]
        metrics = self.out / "metrics.jsonl"
        if metrics.exists() and self.rank == 0:
            try:
                lines = [
                    line
                    for line in metrics.read_text().splitlines(keepends=True)
                    if line.endswith("\n") and json.loads(line)["step"] <= self.step
                ]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{metrics} has a damaged line: {error}") from error
            write_atomically(metrics, lambda path: Path(path).write_text("".join(lines)))
        if self.world > 1:
            dist.barrier()
