"""Settings of a run: what the pipelines' configurations share, presets, and their file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import ClassVar, get_args, get_origin, get_type_hints

import torch
from safetensors import safe_open

from .data.properties import MOST_OBJECTS
from .files import write_atomically
from .schedules import RATES

MOST, MOST_FLOAT = 2**31 - 1, 1e9  # of any setting
MOST_ITERS = 2**20 - 1  # of smm_py


@dataclass
class Config:
    """Everything that a run depends on; written to DIR/config.json.

    `steps` None: as many as `minutes` allow, fixed by timing the first ones and then recorded.
    Every field but `preset` and the tuples is an option of the command line.
    """

    PRESETS: ClassVar[dict[str, dict]] = {"tiny": {}}
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "model": ("smm", "sa", "kmeans", "gmm"),
        "variant": ("stable", "paper"),
        "start": ("inputs", "gaussian"),
        "schedule": tuple(RATES),
        "precision": ("auto", "float32", "bfloat16"),
    }
    HELP: ClassVar[dict[str, str]] = {
        "data": "folder of a data set in its official layout; default: built-in scenes",
        "dataset": "which data set it is, where the folder does not tell",
        "cache": "folder for decoded pictures of --data (docs/data.md)",
        "model": "slot module",
        "image_size": "height and width that pictures are brought to",
        "min_objects": "of built-in scenes",
        "max_objects": "of built-in scenes",
        "slots": "their number",
        "dim": "width of features and slots",
        "hidden": "width of the slot module's MLPs",
        "train_iters": "iterations in training",
        "eval_iters": "iterations in evaluation",
        "start": "of the slots of smm and sa; kmeans and gmm start at inputs",
        "batch_size": "of all processes together",
        "lr": "highest learning rate",
        "warmup": "share of the steps in which the rate rises",
        "steps": "of training; in place of minutes",
        "minutes": "of training, from which the steps are made; in place of steps",
        "seed": "of weights, order of pictures and initial slots",
        "log_every": "steps between lines of the log",
        "evaluate_every": "steps between evaluations",
        "checkpoint_every": "steps between checkpoints",
        "weights": ".safetensors file to start from, or to evaluate with the settings that it carries",
        "pictures": "built-in scenes that are drawn and gone through again and again",
        "schedule": "of the learning rate: one cycle, or linear warm-up and exponential decay",
        "half_life": "steps in which the rate decays by half",
        "clip": "greatest norm of the gradient",
        "clip_norm": "which norm that is; inf: of the largest number",
        "variant": "setting of the slot mixture",
        "temperature": "factor of the log density, of smm with --variant stable and of gmm; default: dim^-1/2",
        "precision": "of the convolutions",
        "threads": "of PyTorch and of the slot module",
    }

    model: str = "smm"
    preset: str = "tiny"
    data: str | None = None
    dataset: str | None = None
    cache: str | None = None
    image_size: int = 64
    min_objects: int = 2
    max_objects: int = 6
    pictures: int = 20_000
    slots: int = 7
    dim: int = 64
    hidden: int = 128
    train_iters: int = 5
    eval_iters: int = 7
    variant: str = "stable"  # or "paper": the module as printed
    temperature: float | None = None  # of "stable" and of the Gaussian mixture; None: dim^-1/2
    start: str = "inputs"
    batch_size: int = 32
    lr: float = 1e-3
    schedule: str = "cycle"
    warmup: float = 0.05  # share of the steps
    half_life: int | None = 100_000
    clip: float | None = 1.0
    clip_norm: float = 2.0
    steps: int | None = None
    minutes: float | None = 5.0
    seed: int = 0
    threads: int | None = (
        None  # None: as PyTorch and the slot module choose; other numbers round otherwise
    )
    precision: str = "auto"  # "auto": bfloat16 where the processor multiplies it
    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 250
    weights: str | None = None

    def save(self, path):
        write_atomically(
            path, lambda p: Path(p).write_text(json.dumps(asdict(self), indent=1) + "\n")
        )

    @classmethod
    def load(cls, path):
        """From a config.json; ValueError, naming the file, if it is none."""
        try:
            config = cls.from_json(json.loads(Path(path).read_text()))
            config.check()
            return config
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is not the configuration of a run: {error}") from error

    def without_places(self):
        """JSON of all but the user's files: what a file of weights carries."""
        return json.dumps(
            {
                name: value
                for name, value in asdict(self).items()
                if name not in ("data", "dataset", "cache", "weights")
            }
        )

    @classmethod
    def of_weights(cls, path):
        """Of the run that wrote a `.safetensors` file, or None where the file does not say it."""
        try:
            with safe_open(path, "pt") as file:
                return cls.from_json(json.loads((file.metadata() or {})["config"]))
        except Exception:  # the reader of the weights tells what is wrong with a file
            return None

    @classmethod
    def from_json(cls, values):
        """From what a config.json holds."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    @classmethod
    def from_preset(cls, name, **changes):
        """A preset's configuration with some settings changed (None: as the preset has it)."""
        if name not in cls.PRESETS:
            raise ValueError(f"preset must be one of {', '.join(cls.PRESETS)}, got {name!r}")
        values = {**cls.PRESETS[name], **{k: v for k, v in changes.items() if v is not None}}
        if changes.get("minutes") is not None and changes.get("steps") is None:
            values["steps"] = None
        config = cls(preset=name, **values)
        if (
            config.model == "smm"
            and config.variant == "paper"
            and changes.get("temperature") is None
        ):
            config.temperature = None
        config.check()
        if config.precision == "auto":  # from here on it is recorded, and a resumed run keeps it
            config.precision = "bfloat16" if has_bfloat16() else "float32"
        return config

    def data_options(self) -> dict:
        """What the reader of the data set is told beyond place, split and size."""
        return (
            {}
            if self.data
            else dict(min_objects=self.min_objects, max_objects=self.max_objects, seed=0)
        )

    def check(self):
        """ValueError, naming the setting, for a value that no run can have."""
        hints = get_type_hints(type(self))
        for name in (f.name for f in fields(self)):
            check_type(name, getattr(self, name), hints[name])
        for name, choices in self.CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        for name in (
            "image_size",
            "slots",
            "dim",
            "hidden",
            "batch_size",
            "train_iters",
            "eval_iters",
            "pictures",
            "log_every",
            "evaluate_every",
            "checkpoint_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("train_iters", "eval_iters"):
            if getattr(self, name) > MOST_ITERS:
                raise ValueError(f"{name} must be at most {MOST_ITERS}, got {getattr(self, name)}")
        for name in ("lr", "clip", "clip_norm"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f"warmup must be a share of the steps, from 0 to less than 1, got {self.warmup}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be from 0 to {MOST}, got {self.seed}")
        if self.data is None and not 1 <= self.min_objects <= self.max_objects <= MOST_OBJECTS:
            raise ValueError(
                f"min_objects and max_objects must be in order and from 1 to {MOST_OBJECTS}, "
                f"got {self.min_objects} and {self.max_objects}"
            )
        if self.temperature is not None and self.model == "smm" and self.variant == "paper":
            raise ValueError(
                f"temperature must be left out with variant 'paper', where it is 1, got {self.temperature}"
            )
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature must be more than 0, got {self.temperature}")
        if self.half_life is not None and self.half_life < 1:
            raise ValueError(f"half_life must be at least 1, got {self.half_life}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.steps is None and not (self.minutes and self.minutes > 0):
            raise ValueError(f"minutes must be more than 0, got {self.minutes}")


def type_of(hint):
    """A setting's type, and whether None may stand in its place."""
    return (get_args(hint)[0], True) if isinstance(hint, UnionType) else (hint, False)


def check_type(name, value, hint):
    """ValueError, naming the setting, for what is not of its type, or a number beyond all use."""
    kind, optional = type_of(hint)
    if value is None and optional:
        return
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple) or not value:
            raise ValueError(f"{name} must be a list of int, got {value!r}")
        for number in value:
            check_type(name, number, get_args(kind)[0])
            if number < 1:
                raise ValueError(f"{name} must be of numbers of at least 1, got {list(value)}")
        return
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"{name} must be of type {kind.__name__}, got {value!r}")
    if kind is int and not abs(value) <= MOST:
        raise ValueError(f"{name} must be at most {MOST}, got {value}")
    if kind is float and not abs(value) <= MOST_FLOAT and name != "clip_norm":
        raise ValueError(f"{name} must be a number of at most {MOST_FLOAT:.0e}, got {value}")


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (float32 is slower here, bfloat16 elsewhere)."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask and ask())
