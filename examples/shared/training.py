"""The training loop: steps, schedule, checkpoints, metrics, several processes.

What a step does is a function of (seed, step) and of the weights alone, so a run that is killed and
resumed ends in the same bits, and several processes train what one would (but for dropout, which
each draws for its own share).
"""

from __future__ import annotations

import io
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save as safetensors_bytes
from torch import nn
from tqdm import tqdm

from ..data.fields import parse_json
from .config import MOST
from .files import append_line, first_line, write_atomically
from .modules import check_weights
from .pictures import open_pictures, seed_of, to_input
from .plan import Plan
from .schedules import RATES, UNKNOWN
from .signals import Signals

MOMENTS = "exp_avg", "exp_avg_sq"  # of Adam
TOGETHER = 8  # steps after which processes ask each other for signals


def rank_and_world():
    """This process's number and how many there are (torchrun sets both up)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def start_processes(device):
    """Join the group that torchrun started, if it did; returns the device of this process."""
    if "RANK" in os.environ and not dist.is_initialized():
        # Its functions' defaults are the group of the moment of the import, which
        # DistributedDataParallel would do later: then nothing ends that group's threads, and the
        # interpreter's end may abort in them.
        from torch.distributed.nn import functional  # noqa: F401

        cuda = torch.device(device).type == "cuda"
        dist.init_process_group("nccl" if cuda else "gloo")
        if cuda:
            return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(device)


def read_checkpoint(out):
    """What `Loop` saved in the folder, or None; ValueError, naming the file, if that is damaged."""
    path = Path(out) / "checkpoint.pt"
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"checkpoint {path} cannot be read: {first_line(error)}") from error
    if not isinstance(state, dict) or not {"model", "optimizer", "step", "seconds"} <= set(state):
        raise ValueError(f"{path} is not the checkpoint of a run")
    for name, kind in (("step", int), ("seconds", float)):
        if not isinstance(state[name], kind) or not 0 <= state[name] < math.inf:
            raise ValueError(f"{path}: {name} must be a number of at least 0, got {state[name]!r}")
    return state


def slots_of(config, step):
    """Number of slots in a step of training, the same in all processes; None: all of them."""
    if config.least_slots is None:
        return None
    drawn = np.random.default_rng([config.seed, step, 1])
    return int(drawn.integers(config.least_slots, config.slots + 1))


class Loop:
    """Train `model` for `config.steps` steps, from the checkpoint in `out` if there is one.

    Parameters
    ----------
    model : module; called by `loss`.
    config : a `Config`; without steps they are found from its minutes and recorded in
        DIR/config.json.
    loss : (model, step, indices) -> scalar for the samples `indices` of this process.
    evaluate : (model, steps done) -> dict for the log, called now and then by the first process;
        its floats are shown.
    groups : list of (parameters, rate), optional. rate(config, step) is the learning rate of these
        parameters, whose gradients are clipped together; all parameters and config.schedule's if
        not given.
    """

    def __init__(self, model, config, out, loss, evaluate, groups=None):
        self.model, self.config, self.out = model, config, Path(out)
        self.loss, self.evaluate = loss, evaluate
        self.rank, self.world = rank_and_world()
        if config.batch_size % self.world:
            raise ValueError(
                f"batch_size must be a multiple of the {self.world} processes, "
                f"got {config.batch_size}"
            )
        self.trained = model if self.world == 1 else nn.parallel.DistributedDataParallel(model)
        learning = [p for p in model.parameters() if p.requires_grad]
        self.groups = groups or [(learning, RATES[config.schedule])]
        self.start()

    def start(self):
        self.step, self.seconds, self.planned = 0, 0.0, None
        groups = [{"params": parameters} for parameters, _ in self.groups]
        self.optimizer = torch.optim.Adam(groups, lr=self.config.lr)

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
        """Fix the number of steps so that training ends in about config.minutes.

        Some are timed, as they are late in a run.
        """
        start = {k: v.clone() for k, v in self.model.state_dict().items()}
        for _ in range(2):  # where pictures are kept, they are there the second time
            self.step, times = UNKNOWN, []
            for _ in range(8):
                begin = time.perf_counter()
                float(self.one_step())  # waits for a device
                times.append(time.perf_counter() - begin)
        seconds = torch.tensor(sorted(times)[4])
        if self.world > 1:
            dist.broadcast(seconds, 0)
        self.config.steps = max(1, min(MOST, int(self.config.minutes * 60 / float(seconds))))
        self.model.load_state_dict(start)
        self.start()
        self.planned = self.config.steps * float(seconds)

    # -- a run ---------------------------------------------------------------------------------

    def run(self):
        """Train to the end."""
        self.load()
        if self.config.steps is None:
            self.measure_steps()
            if self.rank == 0:
                self.config.save(self.out / "config.json")
        signals = Signals()
        try:
            self.steps(signals)
            if signals.came:
                self.leave(signals)
        finally:
            signals.restore()

    def steps(self, signals):
        """Train until the end, or until a signal has come."""
        self.shown, begin, since, plan = {}, time.perf_counter(), self.step, None
        total, quiet = self.config.steps, self.rank > 0
        with tqdm(total=total, initial=since, disable=quiet, unit="step", smoothing=0.05) as bar:
            while self.step < total and not self.interrupted(signals):
                before = time.perf_counter()
                loss = self.one_step()
                now = time.perf_counter()
                self.seconds += now - before
                signals.watch()  # before a step is done there is nothing to save
                bar.update()
                if plan is None and self.planned:  # after the first pictures have been read
                    plan = Plan(total, self.planned, self.step, self.seconds, now)
                elif plan and not quiet and (text := plan.look(self.step, now)):
                    tqdm.write(text, file=sys.stderr)
                if self.due(self.config.log_every):
                    seen = (self.step - since) * self.config.batch_size
                    speed = f"{seen / (time.perf_counter() - begin):.0f}"
                    loss = self.log(loss)
                    bar.set_postfix({"loss": f"{loss:.4f}", **self.shown, "pictures/s": speed})
                if self.due(self.config.checkpoint_every):
                    self.save()

    def interrupted(self, signals):
        """Whether a signal has come to any process: all of them leave after the same step."""
        if self.world == 1 or self.step % TOGETHER:
            return self.world == 1 and signals.came
        came = torch.tensor(signals.came or 0, device=next(self.model.parameters()).device)
        dist.all_reduce(came, dist.ReduceOp.MAX)
        signals.came = int(came) or None
        return signals.came

    def leave(self, signals):
        """Save the state, then end as the signal ends a program."""
        if not self.due(self.config.checkpoint_every):
            self.save()
        if self.rank == 0:
            name, end = (
                signal.Signals(signals.came).name,
                f"step {self.step} of {self.config.steps}",
            )
            again = f"go on with --resume --out {self.out}"
            print(f"{name}: saved after {end}; {again}", file=sys.stderr)
        signals.act(signals.came)

    def due(self, every):
        return self.step % every == 0 or self.step == self.config.steps

    def log(self, loss):
        """A line of DIR/metrics.jsonl, with an evaluation where one is due; the loss as a float."""
        if self.world > 1:
            dist.all_reduce(loss)
            loss /= self.world
        loss = float(loss)
        self.check_finite(f"the loss is {loss} at", torch.tensor(loss))
        if self.rank == 0:
            rate = self.optimizer.param_groups[0]["lr"]
            line = {"step": self.step, "loss": loss, "lr": rate}
            if self.due(self.config.evaluate_every):
                result = self.evaluate(self.model, self.step)
                line.update(result)
                self.shown = {k: f"{v:.3g}" for k, v in result.items() if isinstance(v, float)}
            append_line(self.out / "metrics.jsonl", json.dumps(line))
        return loss

    def save(self):
        """Weights and checkpoint, each complete at any moment.

        The checkpoint is last, so that what is resumed writes newer weights.
        """
        model = self.model.state_dict()
        for name, values in model.items():
            self.check_finite(f"{name} is not finite after", values)
        if self.rank:
            return
        weights = {k: v.contiguous() for k, v in model.items()}
        settings = {"config": self.config.without_places()}
        state = {"model": model, "optimizer": self.optimizer.state_dict()}
        state |= {"step": self.step, "seconds": self.seconds, "planned": self.planned}  # of steps
        buffer = io.BytesIO()  # as PyTorch's own writing does not say that the disk is full
        torch.save(state, buffer)
        files = {"model.safetensors": safetensors_bytes(weights, settings)}
        files["checkpoint.pt"] = buffer.getbuffer()
        for name, content in files.items():
            write_atomically(self.out / name, lambda path, all=content: path.write_bytes(all))

    def check_finite(self, what, values):
        if not torch.isfinite(values).all():
            kept = "keeps the last" if (self.out / "checkpoint.pt").exists() else "has no"
            raise FloatingPointError(f"{what} step {self.step}; {self.out} {kept} checkpoint")

    def check_state(self, state):
        """ValueError, naming the parameter, for weights or moments that cannot be gone on with."""
        what, slots = f"checkpoint in {self.out} is", self.config.slots
        check_weights(state["model"], self.model.state_dict(), what, slots)
        names = {id(p): name for name, p in self.model.named_parameters()}
        learning = [p for group in self.optimizer.param_groups for p in group["params"]]
        try:
            for number, moments in state["optimizer"]["state"].items():
                name = names[id(learning[number])]
                own = dict.fromkeys((f"{key} of {name}" for key in MOMENTS), learning[number])
                moments = {f"{key} of {name}": moments[key] for key in MOMENTS}
                check_weights(moments, own, what)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"{what} of another model: {error!r}") from error

    def load(self):
        """Go on from the checkpoint; metrics logged after it are dropped, as they come again."""
        state = read_checkpoint(self.out)
        if state:
            self.check_state(state)
            try:
                self.model.load_state_dict(state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
            except Exception as error:
                message = f"checkpoint in {self.out} is of another model: {first_line(error)}"
                raise ValueError(message) from error
            self.step, self.seconds = state["step"], state["seconds"]
            self.planned = state.get("planned")
        metrics = self.out / "metrics.jsonl"
        if metrics.exists() and self.rank == 0:
            try:
                lines = metrics.read_text().splitlines(keepends=True)
                whole = [line for line in lines if line.endswith("\n")]
                lines = [line for line in whole if parse_json(line)["step"] <= self.step]
            except OSError as error:
                raise ValueError(f"{metrics} cannot be read: {error.strerror}") from error
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{metrics} has a damaged line: {error}") from error
            write_atomically(metrics, lambda path: Path(path).write_text("".join(lines)))
        if self.world > 1:
            dist.barrier()


def fit(model, config, out, loss, evaluate, fields=("image",), optional=(), groups=None):
    """Train a model on the pictures of its configuration, into the folder `out`; returns it.

    Parameters
    ----------
    loss : (model, step, indices, images, seeds, *other fields) -> scalar; images as the model takes
        them, and for each the seed of its initial slots.
    evaluate : (model, pictures, steps done) -> dict, on 100 pictures; see `Loop`, also for groups.
    fields : of the pictures. optional : fields that `evaluate` uses where there are such.
    """
    device = next(model.parameters()).device
    pictures = open_pictures(config, "train", None, fields)
    check = open_pictures(config, "val", 100, fields, optional)

    def of_batch(trained, step, indices):
        images, *rest = pictures.train_batch(config.seed, indices, config.batch_size)
        seeds = [seed_of(config.seed, i) for i in indices]
        return loss(trained, step, indices, to_input(images, device), seeds, *rest)

    def of_check(model, step):
        return evaluate(model, check, step)

    Loop(model, config, out, of_batch, of_check, groups).run()
    return model
