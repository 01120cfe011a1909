"""The command line that the pipelines share: options, configuration, the run's folder, train and eval."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import torch
import torch.distributed as dist

import smm_py

from .config import MOST, Config, type_of
from .data.properties import MOST_OBJECTS
from .files import first_line
from .pictures import open_pictures
from .training import rank_and_world, start_processes

# what a trained model can be evaluated with, in place of what it was trained with; and what a run can go on with
FREE = (
    "data",
    "dataset",
    "cache",
    "weights",
    "min_objects",
    "max_objects",
    "eval_iters",
    "precision",
    "threads",
)
FREE_TO_RESUME = ("cache",)
MOST_THREADS = 4096  # of smm_py


@dataclass
class Pipeline:
    """What a pipeline gives to the command line.

    name : of its folder in `examples`.
    about : what it does, for --help.
    config : its configurations' class.
    fields : what it evaluates, such as ("image", "target"); see `examples.data`. optional : what it uses where there is such.
    build : (config, device) -> model.
    train : (config, out, device) -> the model, trained and saved in `out`.
    curves : (out) draws the curves of a run.
    commands : name -> function; (model, pictures, config, options) -> (figures, more of the protocol). "eval" is one.
    add_options : adds to the parser what this pipeline alone has.
    least : pictures that its commands need.
    """

    name: str
    about: str
    config: type[Config]
    fields: tuple[str, ...]
    build: Callable
    train: Callable
    curves: Callable
    commands: Mapping[str, Callable]
    add_options: Callable = field(default=lambda parser: None)
    optional: tuple[str, ...] = ()
    least: int = 1

    def open(self, config, options, count, quiet=False):
        """The pictures that its commands read."""
        pictures = open_pictures(config, options.split, count, quiet, self.fields, self.optional)
        if len(pictures) < self.least:
            raise ValueError(f"images must be at least {self.least}, got {len(pictures)}")
        return pictures


def make_parser(pipeline):
    parser = argparse.ArgumentParser(
        prog=f"python -m examples.{pipeline.name}", description=pipeline.about
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=("train", *pipeline.commands),
        help="default: train, then eval",
    )
    parser.add_argument(
        "--preset",
        choices=tuple(pipeline.config.PRESETS),
        help="settings to start from (default: tiny)",
    )
    parser.add_argument(
        "--out", type=folder, help="the run's folder; default: a new one below runs/"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument(
        "--seeds",
        type=int,
        help="this many runs, of one seed each, in folders of their own; mean and deviation",
    )
    parser.add_argument("--split", default="val", help="what eval reads (default: val)")
    parser.add_argument(
        "--images",
        type=int,
        help="how many pictures are read (default: 500 scenes, or all; to show them, 8)",
    )
    parser.add_argument(
        "--draws", type=int, default=3, help="draws of the initial slots in eval (default: 3)"
    )
    parser.add_argument("--device", default="cpu", help="of PyTorch (default: cpu)")
    pipeline.add_options(parser)
    settings = parser.add_argument_group("settings", "in place of the preset's")
    for name, kind in settings_of(pipeline.config).items():
        settings.add_argument(
            "--" + name.replace("_", "-"),
            type=kind,
            choices=pipeline.config.CHOICES.get(name),
            help=pipeline.config.HELP.get(name),
        )
    return parser


def settings_of(config) -> dict[str, type]:
    """Name -> type of the settings that are options: numbers and strings."""
    settings = {}
    for name, hint in get_type_hints(config).items():
        kind, _ = type_of(hint)  # "int | None" is asked for as an int
        if kind in (int, float, str) and name != "preset":
            settings[name] = kind
    return settings


def configure(pipeline, options) -> Config:
    """The run's configuration: of its folder where it goes on or is evaluated, of the weights where these are, else of preset and options."""
    given = {
        name: getattr(options, name)
        for name in settings_of(pipeline.config)
        if getattr(options, name) is not None
    }
    stored = options.out / "config.json" if options.out else None
    trains = options.command in (None, "train")
    config, place = None, f"the run in {options.out}"
    if stored and stored.exists() and (options.resume or not trains):
        config = pipeline.config.load(stored)
    elif options.resume:
        raise ValueError(
            f"there is no run to resume in {options.out}" if options.out else "--resume needs --out"
        )
    elif options.weights and not trains:
        config, place = pipeline.config.of_weights(options.weights), f"the run of {options.weights}"
    if config is None:
        return pipeline.config.from_preset(options.preset or "tiny", **given)
    if options.preset not in (None, config.preset):
        raise ValueError(f"preset differs from {place}: {config.preset!r}, got {options.preset!r}")
    if (
        "data" in given and config.data is None and not trains
    ):  # a limit of scenes, not of these data
        config.max_objects = MOST_OBJECTS
    for name, value in given.items():
        if name in (FREE_TO_RESUME if trains else FREE):
            setattr(config, name, value)
        elif getattr(config, name) != value:
            raise ValueError(
                f"{name} differs from {place}: {getattr(config, name)!r}, got {value!r}"
            )
    config.check()
    return config


def new_folder(name):
    number = 1
    while Path("runs", f"{name}-{number}").exists():
        number += 1
    return Path("runs", f"{name}-{number}")


def run_training(pipeline, options, config, device):
    rank, _ = rank_and_world()
    checkpoint = options.out / "checkpoint.pt"
    if (
        not options.resume
        and rank == 0
        and (checkpoint.exists() or (options.out / "metrics.jsonl").exists())
    ):
        raise ValueError(
            f"{options.out} holds a run already; give --resume to go on with it, or another --out"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        config.save(options.out / "config.json")
        print(f"training {config.model} in {options.out}", flush=True)
    if dist.is_initialized():
        dist.barrier()
    if checkpoint.exists():  # it holds what became of the weights to start from
        config = replace(config, weights=None)
    model = pipeline.train(config, options.out, device)
    if rank == 0:
        pipeline.curves(options.out)
    return model


def run_command(pipeline, name, options, config, model, device):
    """Figures of "eval" or another command on a model, or on the one that the options name."""
    if model is None:
        trained = options.out / "model.safetensors" if options.out else None
        if options.weights is None and not (trained and trained.exists()):
            raise ValueError(
                f"{name} needs --weights or a trained run in --out, got --out {options.out}"
            )
        config.weights = options.weights or str(trained)
        model = pipeline.build(config, device)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    usual = 8 if name != "eval" else 500 if config.data is None else None
    pictures = pipeline.open(config, options, options.images or usual)
    figures, protocol = pipeline.commands[name](model, pictures, config, options)
    return {
        **figures,
        "images": len(pictures),
        "protocol": {
            "task": pipeline.name,
            "model": config.model,
            "data": config.data or "built-in scenes",
            "split": options.split,
            "image_size": config.image_size,
            "iterations": config.eval_iters,
            **protocol,
        },
    }


def one_run(pipeline, options, device):
    """Train, evaluate, or both; the figures, in the first process."""
    config, model = configure(pipeline, options), None
    if config.threads:
        torch.set_num_threads(config.threads)
        smm_py.set_num_threads(config.threads)
    if options.command in (None, "train"):
        if (
            options.command is None and rank_and_world()[0] == 0
        ):  # a mistake in what is evaluated shows before hours of training
            pipeline.open(
                config, options, min(options.images or pipeline.least, pipeline.least), quiet=True
            )
        model = run_training(pipeline, options, config, device)
    if options.command != "train" and rank_and_world()[0] == 0:
        return run_command(pipeline, options.command or "eval", options, config, model, device)
    return None


def several_seeds(pipeline, options, device):
    """A run for each seed, below options.out; their mean figures, with the deviations and each run's own beside."""
    runs, first = {}, options.seed or 0
    for seed in range(first, first + options.seeds):
        own = copy(options)
        own.seed, own.out = seed, options.out / f"seed-{seed}"
        own.resume = options.resume and (own.out / "config.json").exists()
        runs[seed] = one_run(pipeline, own, device)
        if runs[seed] is not None:
            print(json.dumps({"seed": seed, **runs[seed]}), flush=True)
    if runs[first] is None:
        return None
    figures = {
        seed: {k: v for k, v in run.items() if k not in ("images", "protocol")}
        for seed, run in runs.items()
    }
    rest = {k: runs[first][k] for k in ("images", "protocol")}
    return {
        **over(list(figures.values()), np.mean),
        "std": over(list(figures.values()), np.std),
        "seeds": figures,
        **rest,
    }


def over(figures, function):
    """function of the numbers that stand at the same place of several (nested) dicts."""
    if isinstance(figures[0], Mapping):
        return {name: over([f[name] for f in figures], function) for name in figures[0]}
    return float(function(figures))


def folder(path):
    """The type of an option that names a folder."""
    if not path:
        raise argparse.ArgumentTypeError("the folder's name is empty")
    return Path(path)


def run(pipeline, arguments=None):
    """Do what the command line says; the figures, in the first process. A user's mistake is an error that tells it."""
    options = make_parser(pipeline).parse_args(arguments)
    try:
        try:
            device = start_processes(options.device)
            torch.empty(0, device=device).cpu()  # also of devices that hold no numbers
        except (
            RuntimeError,
            AssertionError,
        ) as error:  # the latter where PyTorch is built without it
            raise ValueError(
                f"device {options.device} cannot be used: {first_line(error)}"
            ) from error
        for name, most in (
            ("images", MOST),
            ("draws", MOST),
            ("seeds", MOST),
            ("threads", MOST_THREADS),
        ):
            if getattr(options, name) is not None and not 1 <= getattr(options, name) <= most:
                raise ValueError(f"{name} must be from 1 to {most}, got {getattr(options, name)}")
        if options.seeds and (options.seed or 0) + options.seeds > MOST + 1:
            raise ValueError(
                f"seeds must leave every seed at most {MOST}, got {options.seeds} from {options.seed} on"
            )
        if options.out is None and options.command in (None, "train") and not options.resume:
            box = [new_folder(pipeline.name)]
            if dist.is_initialized():
                dist.broadcast_object_list(box)
            options.out = box[0]
        if options.seeds and options.out is None:
            raise ValueError("--seeds needs --out")
        return (several_seeds if options.seeds else one_run)(pipeline, options, device)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def main(pipeline, arguments=None):
    """`run`, and its figures on stdout; returns the exit status. A user's mistake is one line on stderr and status 2."""
    return tell(lambda: run(pipeline, arguments))


def tell(work):
    """Print what work() returns, if anything, as JSON; the exit status."""
    try:
        figures = work()
    except (
        ValueError,
        OSError,
        ImportError,
        FloatingPointError,
        MemoryError,
        OverflowError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if figures is not None:
        print(json.dumps(figures))
    return 0
