"""The command line of the pipelines: options, configuration, the run's folder, train, eval."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from textwrap import fill

import numpy as np
import torch
import torch.distributed as dist

import smm_py

from ..data.reader import Reader
from ..pretrained import path_of
from .config import MOST, Config, Setting
from .files import first_line, locked, make_folder
from .pictures import open_pictures, tell_held_out
from .plots import curves
from .show import scenes, show_all
from .training import rank_and_world, start_processes

# what a trained model can be evaluated with, in place of what it was trained with
FREE = {*Config.PLACES, "slots", "min_objects", "max_objects", "eval_iters", "apart"}
FREE |= {"precision", "threads"}
FREE_TO_RESUME = {"cache"}  # what a run can go on with
COUNTS = [
    Setting(name, int, True, help, least=1, most=MOST)
    for name, help in (
        ("seeds", "this many runs, of one seed each, in folders of their own; mean and deviation"),
        ("images", "how many are read (default: 500 scenes, or all; in show 4, else 8)"),
        ("draws", "draws of the initial slots in eval (default: 3)"),
    )
]


@dataclass
class Pipeline:
    """What a pipeline gives to the command line.

    name : of its folder in `examples`.
    about : what it does, for --help.
    config : its configurations' class.
    build : (config, device) -> model.
    train : (config, out, device) -> the model, trained and saved in `out`.
    measured : the measures that its curves show, name -> label; with their axis's label and limits.
    commands : name -> (model, pictures, config, options) -> (figures, more of the protocol);
        "eval" is one.
    fields : what it evaluates, such as ("image", "target"); see `examples.data`.
    optional : the fields that it uses where there are such.
    least : the pictures that its commands need.
    show : (model, `Given` picture, config, seed) -> `Shown`; see `shared.show`.
    data, examples : for --help: data that it can be trained on, lines of its own.
    add_options : adds to the parser what this pipeline alone has.
    """

    name: str
    about: str
    config: type[Config]
    build: Callable
    train: Callable
    measured: tuple[dict[str, str], str, tuple]
    commands: Mapping[str, Callable]
    show: Callable
    fields: tuple[str, ...] = ("image",)
    optional: tuple[str, ...] = ()
    least: int = 1
    data: str = "photos/"
    examples: str = ""
    add_options: Callable = field(default=lambda parser: None)

    def open(self, config, options, count):
        """The pictures that its commands read."""
        pictures = open_pictures(config, options.split, count, self.fields, self.optional)
        if len(pictures) < self.least:
            raise ValueError(f"images must be at least {self.least}, got {len(pictures)}")
        return pictures


EXAMPLES = """\
examples, from the repository's root:
  # train the preset tiny on built-in scenes, then evaluate
  python -m examples.{name}
  # train on pictures in files for half an hour; go on after Ctrl-C
  python -m examples.{name} train --data {data} --minutes 30 --out runs/mine
  python -m examples.{name} train --resume --out runs/mine
  # evaluate a run again, with more slots than it was trained with
  python -m examples.{name} eval --out runs/{name}-1 --slots 9
  # what its model makes of your own pictures, as a PNG each, and as numbers
  python -m examples.{name} show cat.jpg photos/ --run runs/{name}-1 --out shown --json
"""


def make_parser(pipeline):
    commands = ("train", *pipeline.commands, "show")
    choice = f"[{' | '.join(commands)} PICTURE ...]"
    parser = argparse.ArgumentParser(
        prog=f"python -m examples.{pipeline.name}",
        usage=f"%(prog)s {choice} [options]",
        description=fill(pipeline.about, 80),
        epilog=EXAMPLES.format(name=pipeline.name, data=pipeline.data) + pipeline.examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("command", nargs="?", choices=commands, help="default: train, then eval")
    of_show = "of show: files, or folders (default: built-in scenes)"
    add("files", nargs="*", type=folder, metavar="PICTURE", help=of_show)
    presets = tuple(pipeline.config.PRESETS)
    add("--preset", choices=presets, help="settings to start from (default: tiny)")
    add("--out", type=folder, help="the run's folder; default: a new one below runs/")
    add("--run", type=folder, help="of show: the run; default: --out, or the newest below runs/")
    add("--json", action="store_true", help="of show: numbers, as one JSON object")
    add("--resume", action="store_true", help="go on with the run in --out")
    add("--split", default="val", help="what eval reads (default: val)")
    add("--device", default="cpu", help="of PyTorch (default: cpu)")
    for count in COUNTS:
        count.add_to(parser)
    parser.set_defaults(draws=3)
    pipeline.add_options(parser)
    settings = parser.add_argument_group("settings", "in place of the preset's")
    for setting in pipeline.config.options().values():
        setting.add_to(settings)
    return parser


def add_merge(parser):
    """The option of pipelines whose models can merge slots."""
    told = "of eval and show: slots that have parts of one object as one, or not"
    parser.add_argument("--merge", action=argparse.BooleanOptionalAction, help=told)


def set_merge(options, model):
    """As the option says, if it is given; returns what of it belongs to the protocol."""
    if getattr(options, "merge", None) is not None:
        model.merge = options.merge
    return {"merge": model.merge} if hasattr(model, "merge") else {}


def configure(pipeline, options) -> Config:
    """The run's configuration.

    It is that of the run's folder where that goes on or is evaluated, that of the weights where
    these are evaluated, else made of preset and options.
    """
    given = {name: getattr(options, name) for name in pipeline.config.options()}
    given = {name: value for name, value in given.items() if value is not None}
    if options.command == "show":
        given.pop("seed", None)  # of the initial slots alone
    stored = options.out / "config.json" if options.out else None
    trains = options.command in (None, "train")
    config, place = None, f"the run in {options.out}"
    if stored and stored.exists() and (options.resume or not trains):
        config = pipeline.config.load(stored)
    elif options.resume:
        what = f"there is no run to resume in {options.out}"
        raise ValueError(what if options.out else "--resume needs --out")
    elif options.weights and not trains:
        config, place = pipeline.config.of_weights(options.weights), f"the run of {options.weights}"
    if config is None:
        return pipeline.config.from_preset(options.preset or "tiny", **given)
    if not trains:
        config.least_slots = None  # of training: any number can be evaluated
    if not trains and "data" in given and config.data is None:
        config.max_objects = Reader.most_objects  # the run's limit was of built-in scenes
    free = FREE_TO_RESUME if trains else FREE
    kept = {"preset": options.preset or config.preset} | given
    for name, value in kept.items():
        if name in free:
            setattr(config, name, value)
        elif getattr(config, name) != value:
            was = getattr(config, name)
            raise ValueError(f"{name} differs from {place}: {was!r}, got {value!r}")
    config.check()
    return config


def new_folder(name):
    number = 1
    while Path("runs", f"{name}-{number}").exists():
        number += 1
    return Path("runs", f"{name}-{number}")


def run_training(pipeline, options, config, device):
    first = rank_and_world()[0] == 0
    checkpoint, metrics = options.out / "checkpoint.pt", options.out / "metrics.jsonl"
    if first and not options.resume and (checkpoint.exists() or metrics.exists()):
        raise ValueError(
            f"{options.out} holds a run already; give --resume to go on with it, or another --out"
        )
    make_folder(options.out)
    if first:
        config.save(options.out / "config.json")
        length = f"{config.steps:,} steps" if config.steps else f"{config.minutes:g} minutes"
        print(f"training {config.model} in {options.out}: {length}", flush=True)
        tell_held_out(config, "val")
    if dist.is_initialized():
        dist.barrier()
    if checkpoint.exists():  # it holds what became of the weights to start from
        config = replace(config, weights=None)
    model = pipeline.train(config, options.out, device)
    if first:
        curves(options.out, *pipeline.measured)
        again = f"python -m examples.{pipeline.name} show PICTURE --run {options.out}"
        print(f"model: {options.out / 'model.safetensors'} (on pictures of yours: {again})")
        print(f"curves: {options.out / 'curves.png'}", flush=True)
    return model


def explain(meaning, reached, steps, config, options):
    """Print what the figures above mean, what the preset tiny reaches, and what this run had."""
    had = f"; this run has {config.steps:,}" if config.steps else ""
    if config.preset == "tiny" and config.steps and config.steps < steps / 2:
        had += f", too few to learn (a busy machine takes few in its minutes): give --steps {steps}"
    text = (
        f"{meaning} ± is the standard deviation over {options.draws} draws of the initial slots. "
        f"On built-in scenes the preset tiny ends near {reached} after {steps:,} steps{had}. "
        "See docs/guides/metrics.md."
    )
    print(fill(text, 100))


def trained_model(pipeline, name, options, config, device):
    """The model that the options name, for a command."""
    trained = options.out / "model.safetensors" if options.out else None
    if options.weights is None and not (trained and trained.exists()):
        place = "--run" if name == "show" else "--out"
        raise ValueError(
            f"{name} needs --weights or a trained run in {place}, got {place} {options.out}"
        )
    config.weights = options.weights or str(trained)
    return pipeline.build(config, device)


def newest_run(name) -> Path | None:
    """The latest folder that `new_folder` made and that has a model."""
    paths = [path.parent for path in Path("runs").glob(f"{name}-*/model.safetensors")]
    numbers = {path.name.removeprefix(f"{name}-"): path for path in paths}
    return numbers[max(found, key=int)] if (found := [n for n in numbers if n.isdigit()]) else None


def show(pipeline, options, device):
    """What a trained model makes of pictures, told; or, with --json, the figures."""
    run, out = options.run, options.out
    if run is None and options.weights is None:
        is_run = out and (out / "model.safetensors").exists()
        run = out if is_run else newest_run(pipeline.name) or out
    if run is None and options.weights is None:
        raise ValueError("show needs --run or --weights, as there is no trained run below runs/")
    out = out or run or Path("runs", f"{pipeline.name}-shown")
    options = copy(options)
    options.out = run
    config = configure(pipeline, options)
    files = options.files or scenes(config, options.split, options.images or 4, out)
    set_threads(config.threads)
    model = trained_model(pipeline, "show", options, config, device)
    merge = set_merge(options, model)
    seed = options.seed or 0
    pipeline.config.settings()["seed"].check(seed)
    of_picture = partial(pipeline.show, model, config=config, seed=seed)
    say = (lambda text: None) if options.json else print
    say(f"model: {config.weights}, {config.slots} slots")
    figures = show_all(of_picture, config, files, out, say)
    protocol = {"task": pipeline.name, "model": config.model, "weights": config.weights}
    protocol |= {"image_size": config.image_size, "slots": config.slots}
    protocol |= {"iterations": config.eval_iters, "seed": seed, **merge}
    result = {"pictures": figures, "images": len(figures), "protocol": protocol}
    return result if options.json else None


def run_command(pipeline, name, options, config, model, device):
    """Figures of "eval" or another command on a model, or on the one that the options name."""
    if model is None:
        model = trained_model(pipeline, name, options, config, device)
        tell_held_out(config, options.split)
    if options.out:
        make_folder(options.out)
    usual = 8 if name != "eval" else 500 if config.data is None else None
    pictures = pipeline.open(config, options, options.images or usual)
    merge = set_merge(options, model)
    figures, protocol = pipeline.commands[name](model, pictures, config, options)
    usual_protocol = {
        "task": pipeline.name,
        "model": config.model,
        "data": config.data or "built-in scenes",
        "split": options.split,
        "image_size": config.image_size,
        "slots": config.slots,
        "iterations": config.eval_iters,
    }
    return {**figures, "images": len(pictures), "protocol": {**usual_protocol, **merge, **protocol}}


def one_run(pipeline, options, device):
    """Train, evaluate, or both, or show; the figures, in the first process."""
    first = rank_and_world()[0] == 0
    if options.command == "show":
        return show(pipeline, options, device) if first else None
    config, model = configure(pipeline, options), None
    set_threads(config.threads)
    if options.command in (None, "train"):
        if first and not options.resume:  # a mistake shows before there is a folder
            config.check_training()
            pipeline.build(config, device)
        if options.command is None and first:
            # a mistake in what is evaluated shows before hours of training
            count = min(options.images or pipeline.least, pipeline.least)
            pipeline.open(config, options, count)
        with locked(options.out) if first else nullcontext():
            if options.resume:  # whoever had the lock before may have fixed the run's steps
                config = configure(pipeline, options)
            model = run_training(pipeline, options, config, device)
    if options.command != "train" and first:
        return run_command(pipeline, options.command or "eval", options, config, model, device)
    return None


def set_threads(threads):
    """Of PyTorch and of the slot module; None leaves them as they are."""
    if threads:
        torch.set_num_threads(threads)
        smm_py.set_num_threads(threads)


def several_seeds(pipeline, options, device):
    """A run for each seed, below options.out: mean and deviation of their figures, and each."""
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
    rest = {key: runs[first][key] for key in ("images", "protocol")}
    figures = {s: {k: v for k, v in run.items() if k not in rest} for s, run in runs.items()}
    mean, deviation = spread(list(figures.values()))
    return {**mean, "std": deviation, "seeds": figures, **rest}


def spread(figures):
    """Mean and standard deviation of the numbers at the same place of several (nested) dicts."""
    return over(figures, np.mean), over(figures, np.std)


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


@contextmanager
def processes(device):
    """The device of this process, in the group that torchrun started, if it did."""
    try:
        try:
            device = start_processes(device)
            torch.empty(0, device=device).cpu()  # also of devices that hold no numbers
        except (RuntimeError, AssertionError) as error:  # the latter of a PyTorch without it
            message = f"device {device} cannot be used: {first_line(error)}"
            raise ValueError(message) from error
        yield device
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def run(pipeline, arguments=None):
    """Do what the command line says; the figures, in the first process.

    A user's mistake is an error that tells it.
    """
    options = make_parser(pipeline).parse_intermixed_args(arguments)
    if options.weights == "pretrained":
        size = options.image_size or pipeline.config.image_size
        name = f"{pipeline.name}-{options.model or pipeline.config.model}-{size}"
        options.weights = str(path_of(name))
    with processes(options.device) as device:
        for count in (*COUNTS, pipeline.config.options()["threads"]):
            count.check(getattr(options, count.name))
        if options.seeds and (options.seed or 0) + options.seeds > MOST + 1:
            raise ValueError(
                f"seeds must leave every seed at most {MOST}, "
                f"got {options.seeds} from {options.seed} on"
            )
        if options.out is None and options.command in (None, "train") and not options.resume:
            box = [new_folder(pipeline.name)]
            if dist.is_initialized():
                dist.broadcast_object_list(box)
            options.out = box[0]
        if options.seeds and options.out is None:
            raise ValueError("--seeds needs --out")
        of_show = {"PICTURE": options.files, "--run": options.run, "--json": options.json}
        given = [name for name, value in of_show.items() if value]
        if options.command != "show" and given:
            raise ValueError(f"{given[0]} is of show alone, got {options.command or 'no command'}")
        if options.command == "show" and options.seeds:
            raise ValueError(f"seeds must be left out with show, got {options.seeds}")
        return (several_seeds if options.seeds else one_run)(pipeline, options, device)


def main(pipeline, arguments=None):
    """`run`, and its figures on stdout; returns the exit status."""
    return tell(lambda: run(pipeline, arguments))


MISTAKES = ValueError, OSError, ImportError, FloatingPointError, MemoryError, OverflowError


def _end_by_signal(kind, error, trace):
    """End the program as Ctrl-C does, and say no more than that.

    Python itself would exit with status 1 where any `exec` runs on the way out.
    """
    sys.__excepthook__(kind, error.with_traceback(None), None)
    if issubclass(kind, KeyboardInterrupt):
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)


def tell(work):
    """Print what work() returns, if anything, as JSON; the exit status.

    A user's mistake is one line on stderr and status 2.
    """
    try:
        figures = work()
    except KeyboardInterrupt:
        sys.excepthook = _end_by_signal
        raise
    except MISTAKES as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if figures is not None:
        print(json.dumps(figures))
    return 0
