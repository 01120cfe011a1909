"""Settings of a run, and the presets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

MODELS = ("smm", "sa", "kmeans", "gmm", "reference")


@dataclass
class Config:
    """Everything that a run depends on; written to DIR/config.json.

    `steps` None: as many as `minutes` allow, fixed by timing the first ones and then recorded.
    """

    model: str = "smm"
    preset: str = "tiny"
    data: str | None = None
    dataset: str | None = None
    image_size: int = 64
    min_objects: int = 2
    max_objects: int = 6
    pictures: int = 20_000      # built-in scenes that are drawn and gone through again and again
    slots: int = 7
    dim: int = 64
    hidden: int = 128
    strides: tuple[int, ...] = (2, 2, 1)
    train_iters: int = 5
    eval_iters: int = 7
    variant: str = "stable"     # or "paper": the module as printed
    start: str = "inputs"
    empty_rows: str = "presence"  # what rows without object are compared in; or "all"
    batch_size: int = 32
    lr: float = 1e-3
    warmup: float = 0.05
    clip: float = 1.0
    steps: int | None = None
    minutes: float | None = 5.0
    seed: int = 0
    precision: str = "auto"     # of the convolutions; "auto": bfloat16 where the processor multiplies it
    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 250
    weights: str | None = None

    def save(self, path):
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path):
        """From a config.json; ValueError, naming the file, if it is none."""
        try:
            values = json.loads(Path(path).read_text())
            unknown = set(values) - {f.name for f in fields(cls)}
            if unknown:
                raise ValueError(f"unknown settings {', '.join(sorted(unknown))}")
            return cls(**{**values, "strides": tuple(values["strides"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not the configuration of a run: {error}") from error


# "paper": Table 1 and appendix; 128 x 128, 10 objects, Adam with one cycle to 4e-4, batch 512
PRESETS = {
    "tiny": {},
    "paper": dict(image_size=128, max_objects=10, slots=10, strides=(1, 2, 2, 1), batch_size=512, lr=4e-4,
                  steps=150_000, minutes=None, variant="paper", start="gaussian", empty_rows="all",
                  pictures=70_000, evaluate_every=5_000, checkpoint_every=1_000),
}


def from_preset(name, **changes) -> Config:
    """A preset's configuration with some settings changed."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    values = {**PRESETS[name], **{k: v for k, v in changes.items() if v is not None}}
    if changes.get("minutes") is not None and changes.get("steps") is None:
        values["steps"] = None
    config = Config(preset=name, **values)
    for field, choices in (("model", MODELS), ("variant", ("stable", "paper")), ("start", ("inputs", "gaussian")),
                           ("empty_rows", ("presence", "all")), ("precision", ("auto", "float32", "bfloat16"))):
        if getattr(config, field) not in choices:
            raise ValueError(f"{field} must be one of {', '.join(choices)}, got {getattr(config, field)!r}")
    for field in ("image_size", "slots", "dim", "hidden", "batch_size", "train_iters", "eval_iters", "pictures"):
        if getattr(config, field) < 1:
            raise ValueError(f"{field} must be at least 1, got {getattr(config, field)}")
    if config.steps is not None and config.steps < 1:
        raise ValueError(f"steps must be at least 1, got {config.steps}")
    if config.steps is None and not (config.minutes and config.minutes > 0):
        raise ValueError(f"minutes must be more than 0, got {config.minutes}")
    if config.precision == "auto":  # from here on it is recorded, and a resumed run keeps it
        config.precision = "bfloat16" if has_bfloat16() else "float32"
    return config


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (float32 is slower here, bfloat16 elsewhere)."""
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask and ask())
