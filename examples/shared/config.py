"""Settings of a run: what the pipelines' configurations share, presets, and their file."""

from __future__ import annotations

import functools
import json
import operator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import ClassVar, get_args, get_origin, get_type_hints

import torch
from safetensors import safe_open

from ..data.fields import parse_json
from ..data.reader import one_of
from ..data.scenes import check_objects
from .files import write_atomically
from .schedules import RATES

MOST, MOST_FLOAT = 2**31 - 1, 1e9  # of any setting
MOST_ITERS, MOST_THREADS = 2**20 - 1, 4096  # of smm_py
BOUNDS = {"least": operator.ge, "above": operator.gt, "most": operator.le, "below": operator.lt}


@dataclass(frozen=True)
class Setting:
    """A setting's type, the values that it may have, and its help.

    kind : int, float, str or tuple (of ints). optional : whether None may stand in its place.
    least, most : bounds that may be reached. above, below : bounds that may not.
    """

    name: str
    kind: type
    optional: bool = False
    help: str | None = None
    choices: tuple[str, ...] | None = None
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def add_to(self, parser):
        option = "--" + self.name.replace("_", "-")
        parser.add_argument(option, type=self.kind, choices=self.choices, help=self.help)

    def check(self, value):
        """ValueError, naming the setting, for a value that it cannot have."""
        if value is None and self.optional:
            return
        if self.kind is tuple and (not isinstance(value, tuple) or not value):
            raise ValueError(f"{self.name} must be a list of int, got {value!r}")
        for one in value if self.kind is tuple else (value,):
            self._check_one(one)

    def _check_one(self, value):
        kind = int if self.kind is tuple else self.kind
        number = (int, float) if kind is float else kind
        if isinstance(value, bool) or not isinstance(value, number):
            raise ValueError(f"{self.name} must be of type {kind.__name__}, got {value!r}")
        if self.choices:
            one_of(self.name, value, self.choices)
        most = {int: MOST, float: MOST_FLOAT}.get(kind)
        if most and self.most is None and not abs(value) <= most:  # NaN too
            words = f"at most {MOST}" if kind is int else f"a number of at most {MOST_FLOAT:.0e}"
            raise ValueError(f"{self.name} must be {words}, got {value}")
        bounds = {holds: getattr(self, name) for name, holds in BOUNDS.items()}
        if not all(bound is None or holds(value, bound) for holds, bound in bounds.items()):
            raise ValueError(f"{self.name} must be {self._range()}, got {value}")

    def _range(self):
        if self.least is None:
            return f"more than {self.above}"
        to = f"to {self.most}" if self.below is None else f"to less than {self.below}"
        bounded = self.most is not None or self.below is not None
        return f"from {self.least} {to}" if bounded else f"at least {self.least}"


def setting(default, help=None, **limits):
    """A field of a configuration; `limits` are those of `Setting`."""
    return field(default=default, metadata={**({"help": help} if help else {}), **limits})


# what the pipelines' presets `paper` share: the module as printed, data of CLEVR's size
PAPER = {
    "variant": "paper",
    "start": "gaussian",
    "max_objects": 10,
    "pictures": 70_000,
    "minutes": None,
    "evaluate_every": 5_000,
    "checkpoint_every": 1_000,
}


@dataclass
class Config:
    """Everything that a run depends on; written to DIR/config.json.

    Every field but `preset` and the tuples is an option of the command line. A pipeline that gives
    a field another default leaves the rest of its `setting` as it is here. `steps` None: as many as
    `minutes` allow, fixed by timing the first ones and then recorded.
    """

    PRESETS: ClassVar[dict[str, dict]] = {"tiny": {}}
    PLACES: ClassVar = ("data", "dataset", "cache", "weights")  # of the user's files

    model: str = setting("smm", "slot module", choices=("smm", "sa", "kmeans", "gmm"))
    preset: str = "tiny"
    data: str | None = setting(None, "folder of a data set; default: built-in scenes")
    dataset: str | None = setting(None, "which data set it is, where the folder does not tell")
    cache: str | None = setting(None, "folder for decoded pictures of --data (docs/data.md)")
    image_size: int = setting(64, "height and width that pictures are brought to", least=1)
    min_objects: int = setting(2, "of built-in scenes")
    max_objects: int = setting(6, "of built-in scenes")
    pictures: int = setting(20_000, "built-in scenes, seen in turn; 0: new ones always", least=0)
    slots: int = setting(7, "their number", least=1)
    least_slots: int | None = setting(
        None, "fewest slots of a training step, which draws their number; default: all", least=1
    )
    dim: int = setting(64, "width of features and slots", least=1)
    hidden: int = setting(128, "width of the slot module's MLPs", least=1)
    train_iters: int = setting(5, "iterations in training", least=1, most=MOST_ITERS)
    eval_iters: int = setting(7, "iterations in evaluation", least=1, most=MOST_ITERS)
    slot_dim: int | None = setting(None, "of sa: width of slots; default: dim", least=1)
    variant: str = setting("stable", "of smm; paper: as printed", choices=("stable", "paper"))
    without: str | None = setting(
        None,
        "of smm: what it has beyond sa and shall not use (variances in the density, the density, "
        "variances in slots)",
        choices=("spread", "density", "variance"),
    )
    # of the stable smm and of gmm
    temperature: float | None = setting(None, "of the log density; default: dim^-1/2", above=0)
    start: str = setting("inputs", "of the slots of smm and sa", choices=("inputs", "gaussian"))
    batch_size: int = setting(32, "of all processes together", least=1)
    lr: float = setting(1e-3, "highest learning rate", above=0)
    schedule: str = setting("cycle", "of the learning rate", choices=tuple(RATES))
    warmup: float = setting(0.05, "share of the steps in which the rate rises", least=0, below=1)
    half_life: int | None = setting(100_000, "steps in which the rate decays by half", least=1)
    clip: float | None = setting(1.0, "greatest norm of the gradient", above=0)
    clip_norm: float = setting(2.0, "which norm; inf: largest number", above=0, most=float("inf"))
    steps: int | None = setting(None, "of training; in place of minutes", least=1)
    minutes: float | None = setting(5.0, "of training; sets the steps if none are given", above=0)
    seed: int = setting(0, "of weights, order of pictures, initial slots", least=0, most=MOST)
    # None: as PyTorch and the slot module choose; another number of threads rounds otherwise
    threads: int | None = setting(None, "of PyTorch and slots", least=1, most=MOST_THREADS)
    # "auto": bfloat16 where the processor multiplies it
    precision: str = setting("auto", "of the convolutions", choices=("auto", "float32", "bfloat16"))
    log_every: int = setting(50, "steps between lines of the log", least=1)
    evaluate_every: int = setting(500, "steps between evaluations", least=1)
    checkpoint_every: int = setting(250, "steps between checkpoints", least=1)
    weights: str | None = setting(None, ".safetensors file to start from, or to evaluate")

    @classmethod
    @functools.cache
    def settings(cls) -> dict[str, Setting]:
        """Every field's `Setting`, by name."""
        hints, metadata = get_type_hints(cls), {}
        for base in reversed(cls.__mro__):
            for name, own in vars(base).get("__dataclass_fields__", {}).items():
                metadata.setdefault(name, {}).update(own.metadata)
        found = {}
        for name in (f.name for f in fields(cls)):
            optional = isinstance(hints[name], UnionType)  # int | None
            kind = get_args(hints[name])[0] if optional else hints[name]
            found[name] = Setting(name, get_origin(kind) or kind, optional, **metadata[name])
        return found

    @classmethod
    def options(cls) -> dict[str, Setting]:
        """The settings that are options of the command line."""
        return {k: s for k, s in cls.settings().items() if s.kind is not tuple and k != "preset"}

    def check(self):
        """ValueError, naming the setting, for a value that no run can have."""
        for name, own in self.settings().items():
            own.check(getattr(self, name))
        if self.data is None:
            check_objects(self.min_objects, self.max_objects)
        if (self.least_slots or 1) > self.slots:
            raise ValueError(
                f"least_slots must be at most slots={self.slots}, got {self.least_slots}"
            )
        if self.temperature is not None and self.model == "smm" and self.variant == "paper":
            raise ValueError(
                "temperature must be left out with variant 'paper', where it is 1, "
                f"got {self.temperature}"
            )
        for name, model in (("slot_dim", "sa"), ("without", "smm")):
            if getattr(self, name) is not None and self.model != model:
                raise ValueError(
                    f"{name} must be left out with model {self.model!r}, as it is of {model}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.steps is None and self.minutes is None:
            raise ValueError("minutes must be more than 0, got None, as no steps are given")

    def check_training(self):
        """ValueError, naming the setting, for what can be evaluated but not trained."""

    def save(self, path):
        text = json.dumps(asdict(self), indent=1) + "\n"
        write_atomically(path, lambda place: Path(place).write_text(text))

    @classmethod
    def load(cls, path):
        """From a config.json; ValueError, naming the file, if it is none."""
        try:
            config = cls.from_json(parse_json(Path(path).read_text()))
            config.check()
            return config
        except (OSError, ValueError, AttributeError, TypeError) as error:
            told = f"{path} is not the configuration of a run of this pipeline: {error}"
            raise ValueError(told) from error

    def without_places(self):
        """JSON of all but the user's files: what a file of weights carries."""
        return json.dumps({k: v for k, v in asdict(self).items() if k not in self.PLACES})

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
        unknown = set(values) - set(cls.settings())
        if unknown:
            raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    @classmethod
    def from_preset(cls, name, **changes):
        """A preset's configuration with some settings changed (None: as the preset has it)."""
        one_of("preset", name, tuple(cls.PRESETS))
        changes = {k: v for k, v in changes.items() if v is not None}
        values = {**cls.PRESETS[name], **changes}
        if "minutes" in changes and "steps" not in changes:
            values["steps"] = None
        config = cls(preset=name, **values)
        if config.model == "smm" and config.variant == "paper" and "temperature" not in changes:
            config.temperature = None
        config.check()
        if config.precision == "auto":  # from here on it is recorded, and a resumed run keeps it
            config.precision = "bfloat16" if has_bfloat16() else "float32"
        return config

    def data_options(self) -> dict:
        """What the reader of the data set is told beyond place, split and size."""
        if self.data:
            return {}
        return {"min_objects": self.min_objects, "max_objects": self.max_objects, "seed": 0}


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively; elsewhere float32 is the faster one."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask and ask())
