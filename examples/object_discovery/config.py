"""Settings of object discovery, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from math import prod
from typing import ClassVar

from .. import config as shared
from ..data import find_reader
from ..data.properties import MOST_OBJECTS


@dataclass
class Config(shared.Config):
    """See `examples.config.Config`. Where `slots` is not given there is one more than objects, for the background."""

    # "paper": Tables 5 and 6, trained as by Locatello et al. (2020) but 300,000 steps: linear warm-up in 10,000, then
    # halved every 100,000, no clipping; --max-objects 6 is CLEVR6
    PRESETS: ClassVar = {
        "tiny": {},
        "paper": dict(
            image_size=128,
            max_objects=10,
            strides=(1, 1, 1, 1),
            decoder_strides=(2, 2, 2, 2, 1),
            decoder_channels=64,
            batch_size=64,
            least_iters=3,
            eval_iters=3,
            lr=4e-4,
            schedule="decay",
            warmup=10_000 / 300_000,
            clip=None,
            steps=300_000,
            minutes=None,
            variant="paper",
            temperature=None,
            position_scale=1.0,
            start="gaussian",
            pictures=70_000,
            evaluate_every=5_000,
            checkpoint_every=1_000,
        ),
    }
    HELP: ClassVar = {
        **shared.Config.HELP,
        "max_objects": "of built-in scenes; with --data, pictures with more are left out (6: CLEVR6)",
        "slots": "default: one more than objects",
        "temperature": "factor of the log density, of smm with --variant stable and of gmm; default: 0.7",
        "least_iters": "fewest iterations in training: their number is drawn for each step, up to train_iters",
        "position_scale": "factor of the initial weights of the encoder's position embedding",
        "decoder_channels": "of the layers between slot and picture",
    }

    image_size: int = 32
    max_objects: int = 4
    slots: int = 5
    train_iters: int = 3
    least_iters: int = 1  # every step of the module learns to improve the slots, not the last alone
    eval_iters: int = 10
    temperature: float | None = (
        0.7  # lower ones let two slots end in one object, higher ones train slowly
    )
    position_scale: float = 4.0  # slots begin as regions, and come to hold an object each
    lr: float = 1e-3
    clip: float | None = (
        0.3  # four times the usual norm: a run can collapse after a gradient of ten times it
    )
    minutes: float | None = 15.0
    strides: tuple[int, ...] = (2, 1, 1)
    decoder_strides: tuple[int, ...] = (2, 2)
    decoder_channels: int = 32

    @classmethod
    def from_preset(cls, name, **changes):
        given = {k: v for k, v in changes.items() if v is not None}
        if "data" in given:
            given.setdefault("max_objects", MOST_OBJECTS)
        most = given.get(
            "max_objects", cls.PRESETS.get(name, {}).get("max_objects", cls.max_objects)
        )
        given.setdefault("slots", most + 1)
        return super().from_preset(name, **given)

    def data_options(self):
        if self.data is None or self.max_objects >= MOST_OBJECTS:
            return super().data_options()
        reader = find_reader(self.data, self.dataset)
        if "max_objects" not in signature(reader).parameters:
            raise ValueError(
                f"max_objects must be {MOST_OBJECTS} with the data set {reader.name}, which is not chosen from, "
                f"got {self.max_objects}"
            )
        return {"max_objects": self.max_objects}

    def check(self):
        super().check()
        for step in (prod(self.strides), prod(self.decoder_strides)):
            if self.image_size % step:
                raise ValueError(f"image_size must be a multiple of {step}, got {self.image_size}")
        if not 1 <= self.least_iters <= self.train_iters:
            raise ValueError(
                f"least_iters must be from 1 to train_iters={self.train_iters}, got {self.least_iters}"
            )
        if not 0 < self.position_scale < float("inf"):
            raise ValueError(
                f"position_scale must be more than 0 and finite, got {self.position_scale}"
            )
        if self.decoder_channels < 1:
            raise ValueError(f"decoder_channels must be at least 1, got {self.decoder_channels}")
