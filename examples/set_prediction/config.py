"""Settings of set prediction, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .. import config as shared


@dataclass
class Config(shared.Config):
    """See `examples.config.Config`."""

    # "paper": Table 1 and appendix; 128 x 128, 10 objects, Adam with one cycle to 4e-4, batch 512
    PRESETS: ClassVar = {
        "tiny": {},
        "paper": dict(
            image_size=128,
            max_objects=10,
            slots=10,
            strides=(1, 2, 2, 1),
            batch_size=512,
            lr=4e-4,
            steps=150_000,
            minutes=None,
            variant="paper",
            start="gaussian",
            empty_rows="all",
            pictures=70_000,
            evaluate_every=5_000,
            checkpoint_every=1_000,
        ),
    }
    CHOICES: ClassVar = {
        **shared.Config.CHOICES,
        "model": ("smm", "sa", "kmeans", "gmm", "reference"),
        "empty_rows": ("presence", "all"),
    }
    HELP: ClassVar = {
        **shared.Config.HELP,
        "empty_rows": "what rows without object are compared in",
    }

    strides: tuple[int, ...] = (2, 2, 1)
    empty_rows: str = "presence"

    @classmethod
    def from_preset(cls, name, **changes):
        if changes.get("model") == "reference":  # the released model has one size
            changes = {"image_size": 128, "max_objects": 10, **changes}
        return super().from_preset(name, **changes)
