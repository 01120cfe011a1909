"""Settings of set prediction, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..data.scenes import shrinking
from ..shared import config as shared
from ..shared.config import setting

# of the presets that do not follow the paper
LIKELIHOOD = {"loss": "likelihood", "position_scale": 4.0, "apart": 0.8}


@dataclass
class Config(shared.Config):
    """See `examples.shared.config.Config`."""

    PRESETS: ClassVar = {
        "tiny": {**LIKELIHOOD, "slots": 9},
        # objects are as large, in pixels, and as near as in `tiny`
        "crowd": {
            **LIKELIHOOD,
            "image_size": 128,
            "min_objects": 20,
            "max_objects": 50,
            "slots": 64,
            "batch_size": 16,
            "minutes": 120.0,
        },
        # Table 1 and appendix; 128 x 128, 10 objects, Adam with one cycle to 4e-4, batch 512
        "paper": {
            **shared.PAPER,
            "image_size": 128,
            "slots": 10,
            "strides": (1, 2, 2, 1),
            "batch_size": 512,
            "lr": 4e-4,
            "steps": 150_000,
            "empty_rows": "all",
        },
    }

    RELEASED_SLOTS: ClassVar = 10

    model: str = setting("smm", choices=("smm", "sa", "kmeans", "gmm", "reference"))
    strides: tuple[int, ...] = setting((2, 2, 1), least=1)
    loss: str = setting("huber", "of a slot and its object", choices=("huber", "likelihood"))
    empty_rows: str = setting(
        "presence", "what huber compares rows without object in", choices=("presence", "all")
    )
    # centres of CLEVR and of built-in scenes of at most ten objects are 0.9 apart at least
    apart: float = setting(
        0.0, "distance below which the surer of two objects is listed alone; 0: all are", least=0
    )
    position_scale: float = setting(1.0, "of the initial position embedding", above=0)
    widest: float = setting(2.0, "of likelihood: scale of coordinates at first", above=0)
    narrowest: float = setting(0.1, "and at the end; an object is at most 1 away", above=0)

    def check(self):
        super().check()
        if self.model == "reference" and self.slots != self.RELEASED_SLOTS:
            own = f"{self.RELEASED_SLOTS} with the model 'reference'"
            raise ValueError(f"slots must be {own}, got {self.slots}")
        if self.model == "reference" and self.loss != "huber":
            raise ValueError(f"loss must be huber with the model 'reference', got {self.loss!r}")

    def check_training(self):
        least, most = self.least_slots or self.slots, self.max_objects
        if self.data is None and least < most:
            name = "least_slots" if self.least_slots else "slots"
            raise ValueError(f"{name} must be at least max_objects={most}, got {least}")

    @property
    def least_distance(self) -> float:
        """`apart`, among objects as small as those of built-in scenes of so many."""
        return self.apart * (1 if self.data else shrinking(self.max_objects))

    @classmethod
    def from_preset(cls, name, **changes):
        if changes.get("model") == "reference":  # the released model has one size
            own = {"image_size": 128, "max_objects": 10, "slots": cls.RELEASED_SLOTS}
            own |= {"loss": "huber", "apart": 0.0}
            changes = own | {k: v for k, v in changes.items() if v is not None}
        return super().from_preset(name, **changes)
