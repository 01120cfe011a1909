"""Settings of object discovery, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from ..data import find_reader
from ..data.reader import Reader
from ..shared import config as shared
from ..shared.config import setting


@dataclass
class Config(shared.Config):
    """See `examples.shared.config.Config`.

    Where `slots` is not given there is one more than objects, for the background.
    """

    PRESETS: ClassVar = {
        "tiny": {"background": "own", "label_cost": 3e-4},
        # Tables 5 and 6, trained as by Locatello et al. (2020) but 300,000 steps: linear warm-up in
        # 10,000, then halved every 100,000, no clipping; --max-objects 6 is CLEVR6
        "paper": {
            **shared.PAPER,
            "image_size": 128,
            "strides": (1, 1, 1, 1),
            "decoder_strides": (2, 2, 2, 2, 1),
            "decoder_channels": 64,
            "batch_size": 64,
            "least_iters": 3,
            "eval_iters": 3,
            "lr": 4e-4,
            "schedule": "decay",
            "warmup": 10_000 / 300_000,
            "clip": None,
            "steps": 300_000,
            "temperature": None,
            "position_scale": 1.0,
        },
    }

    image_size: int = 32
    max_objects: int = setting(4, "pictures with more are left out (6 of CLEVR with masks: CLEVR6)")
    slots: int = setting(5, "default: one more than objects")
    train_iters: int = 3
    # every step of the module learns to improve the slots, not the last alone
    least_iters: int = setting(1, "fewest iterations of a training step (most: train_iters)")
    eval_iters: int = 10
    # lower ones let two slots end in one object, higher ones train slowly
    temperature: float | None = setting(0.7, "of the log density; default: 0.7")
    # slots begin as regions, and come to hold an object each
    position_scale: float = setting(4.0, "of the encoder's initial position embedding", above=0)
    # a vector that is learned for all pictures and drawn beside the slots
    background: str = setting("none", "own: a slot of its own for it", choices=("none", "own"))
    # names of pixels' slots are shorter where few slots have most of the picture
    label_cost: float = setting(0.0, "price of the masks' entropy over slots", least=0)
    # four times the usual norm: a run can collapse after a gradient of ten times it
    clip: float | None = 0.3
    minutes: float | None = 15.0
    strides: tuple[int, ...] = setting((2, 1, 1), least=1)
    decoder_strides: tuple[int, ...] = setting((2, 2), least=1)
    decoder_channels: int = setting(32, "of the layers between slot and picture", least=1)

    @classmethod
    def from_preset(cls, name, **changes):
        given = {k: v for k, v in changes.items() if v is not None}
        if "data" in given:
            given.setdefault("max_objects", Reader.most_objects)
        values = {"max_objects": cls.max_objects, **cls.PRESETS.get(name, {}), **given}
        given.setdefault("slots", values["max_objects"] + 1)
        return super().from_preset(name, **given)

    def data_options(self):
        if self.data is None:
            return super().data_options()
        reader = find_reader(self.data, self.dataset)
        if self.max_objects >= reader.most_objects:
            return {}
        if "max_objects" not in reader.takes:
            raise ValueError(
                f"max_objects must be {reader.most_objects} with the data set {reader.name}, "
                f"which is not chosen from, got {self.max_objects}"
            )
        return {"max_objects": self.max_objects}

    def check(self):
        super().check()
        for step in (prod(self.strides), prod(self.decoder_strides)):
            if self.image_size % step:
                raise ValueError(f"image_size must be a multiple of {step}, got {self.image_size}")
        if not 1 <= self.least_iters <= self.train_iters:
            raise ValueError(
                f"least_iters must be from 1 to train_iters={self.train_iters}, "
                f"got {self.least_iters}"
            )
