"""Settings of SLATE, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .. import config as shared
from .dvae import PATCH


@dataclass
class Config(shared.Config):
    """See `examples.config.Config`. `lr`, `warmup` and `schedule` are of slots and transformer, from the step on in which they begin.

    What trains the dVAE counts in steps, not in shares of the run: at the same step it is the same in runs of any length.
    """

    # "paper": Table 7; 96 x 96 (CLEVR-Mirror: --image-size 64), batch 64, 250,000 steps. What the table does not say is as
    # the paper's source, SLATE, has it: rates, 30,000 steps of warm-up, dropout, each number of a gradient at most 1.
    # Its halving of both rates where the loss of the whole stagnates is left out, as the dVAE would depend on the slots.
    PRESETS: ClassVar = {
        "tiny": {},
        "paper": dict(
            image_size=96,
            max_objects=10,
            pictures=70_000,
            vocabulary=4096,
            channels=64,
            cooldown=30_000,
            dvae_lr=3e-4,
            dvae_half_life=None,
            dvae_alone=0.0,
            tokens="sampled",
            positions="normal",
            token_std=1.0,
            blocks=8,
            heads=8,
            dim=192,
            dropout=0.1,
            hidden=192,
            slots=12,
            train_iters=7,
            eval_iters=7,
            variant="paper",
            start="gaussian",
            batch_size=64,
            lr=1e-4,
            schedule="decay",
            warmup=30_000 / 250_000,
            half_life=None,
            clip_norm=float("inf"),
            steps=250_000,
            minutes=None,
            evaluate_every=5_000,
            checkpoint_every=1_000,
        ),
    }
    CHOICES: ClassVar = {
        **shared.Config.CHOICES,
        "tokens": ("likeliest", "sampled"),
        "positions": ("sinusoids", "normal"),
    }
    HELP: ClassVar = {
        **shared.Config.HELP,
        "precision": "of convolutions and transformer",
        "vocabulary": "number of different tokens",
        "channels": "of the dVAE",
        "cooldown": "steps in which the Gumbel-softmax cools from temperature 1 to 0.1",
        "dvae_lr": "learning rate of the dVAE",
        "dvae_half_life": "steps in which it decays by half",
        "dvae_alone": "share of the steps in which the dVAE alone learns, first of all",
        "tokens": "of the dVAE, that slots and transformer learn from; what eval and sample read are the likeliest",
        "positions": "what the learned vectors of the tokens' places start from",
        "token_std": "standard deviation that the learned vectors of the tokens start with",
        "lr": "highest learning rate of slots and transformer",
        "dropout": "of embeddings and transformer",
        "blocks": "of the transformer",
        "heads": "of its attention",
    }

    image_size: int = 64
    max_objects: int = 4
    slots: int = 6
    train_iters: int = 3
    eval_iters: int = 3
    batch_size: int = 16
    minutes: float | None = 20.0
    precision: str = "float32"
    vocabulary: int = 64
    channels: int = 32
    cooldown: int = 1000
    dvae_lr: float = 2e-3
    dvae_half_life: int | None = 1000
    dvae_alone: float = 0.45  # share of the steps: slots and transformer learn nothing while the tokens change, and take most of a step
    tokens: str = "likeliest"
    positions: str = "sinusoids"
    token_std: float = 0.25  # near places are then more alike than like tokens, and a slot takes one object, not all of them
    blocks: int = 4
    heads: int = 4
    dropout: float = 0.0

    def check(self):
        super().check()
        if self.image_size % PATCH:
            raise ValueError(f"image_size must be a multiple of {PATCH}, got {self.image_size}")
        for name in ("vocabulary", "channels", "cooldown", "blocks", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(f"heads must divide dim={self.dim}, got {self.heads}")
        if not 0 <= self.dvae_alone < 1:
            raise ValueError(f"dvae_alone must be from 0 to less than 1, got {self.dvae_alone}")
        for name in ("token_std", "dvae_lr", "dvae_half_life"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be from 0 to less than 1, got {self.dropout}")
