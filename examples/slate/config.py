"""Settings of SLATE, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..pretrained import path_of
from ..shared import config as shared
from ..shared.config import setting
from .dvae import PATCH

SHIPPED = "slate-dvae-64"  # for pictures of any size


@dataclass
class Config(shared.Config):
    """See `examples.shared.config.Config`.

    `lr`, `warmup` and `schedule` are of slots and transformer, from the step on in which they
    begin. What trains the dVAE counts in steps, not in shares of the run: at the same step it is
    the same in runs of any length.
    """

    PLACES: ClassVar = (*shared.Config.PLACES, "dvae")
    PRESETS: ClassVar = {
        "tiny": {},
        # Table 7; 96 x 96 (CLEVR-Mirror: --image-size 64), batch 64, 250,000 steps. What the table
        # does not say is as the paper's source, SLATE, has it: rates, 30,000 steps of warm-up,
        # dropout, each number of a gradient at most 1. Its halving of both rates where the loss of
        # the whole stagnates is left out, as the dVAE would depend on the slots.
        "paper": {
            **shared.PAPER,
            "image_size": 96,
            "vocabulary": 4096,
            "channels": 64,
            "cooldown": 30_000,
            "dvae_lr": 3e-4,
            "dvae_half_life": None,
            "dvae_alone": 0.0,
            "tokens": "sampled",
            "positions": "normal",
            "token_std": 1.0,
            "blocks": 8,
            "heads": 8,
            "dim": 192,
            "dropout": 0.1,
            "hidden": 192,
            "slots": 12,
            "train_iters": 7,
            "eval_iters": 7,
            "batch_size": 64,
            "lr": 1e-4,
            "schedule": "decay",
            "warmup": 30_000 / 250_000,
            "half_life": None,
            "clip_norm": float("inf"),
            "steps": 250_000,
        },
    }

    max_objects: int = 4
    slots: int = 6
    train_iters: int = 3
    eval_iters: int = 3
    batch_size: int = 16
    minutes: float | None = 20.0
    lr: float = setting(1e-3, "highest learning rate of slots and transformer")
    precision: str = setting("float32", "of convolutions and transformer")
    vocabulary: int = setting(64, "number of different tokens", least=1)
    channels: int = setting(32, "of the dVAE", least=1)
    dvae_encoder: str = setting(
        "layers",
        "SLATE's, or the nearest of as many centres of patches, found by k-means",
        choices=("layers", "centres"),
    )
    cooldown: int = setting(
        1000, "steps in which the Gumbel-softmax cools from temperature 1 to 0.1", least=1
    )
    dvae_lr: float = setting(2e-3, "learning rate of the dVAE", above=0)
    dvae_half_life: int | None = setting(1000, "steps in which it decays by half", above=0)
    # slots and transformer learn nothing while the tokens change, and take most of a step
    dvae_alone: float = setting(
        0.45, "share of the steps in which the dVAE alone learns, first of all", least=0, most=1
    )
    dvae: str | None = setting(
        None, "file of a trained dVAE, which stays as it is; pretrained: the one that ships"
    )
    tokens: str = setting(
        "likeliest",
        "of the dVAE, to learn from; eval and sample read the likeliest",
        choices=("likeliest", "sampled"),
    )
    positions: str = setting(
        "sinusoids",
        "what the learned vectors of the tokens' places start from",
        choices=("sinusoids", "normal"),
    )
    # near places are more alike than like tokens: a slot takes one object, not all of them
    token_std: float = setting(0.25, "standard deviation of the tokens' initial vectors", above=0)
    blocks: int = setting(4, "of the transformer", least=1)
    heads: int = setting(4, "of its attention", least=1)
    dropout: float = setting(0.0, "of embeddings and transformer", least=0, below=1)

    @classmethod
    def from_preset(cls, name, **changes):
        if changes.get("dvae"):
            given = {k: v for k, v in changes.items() if v is not None}
            own = cls.of_weights(cls(dvae=changes["dvae"]).dvae_file())
            names = ("vocabulary", "channels", "dvae_encoder") if own else ()
            changes = {
                **{k: getattr(own, k) for k in names},
                "dvae_alone": 0.0,
                "tokens": "likeliest",
                "precision": "auto",  # nothing of a trained dVAE depends on it
                **given,
            }
        return super().from_preset(name, **changes)

    def dvae_file(self):
        """The path that `dvae` stands for."""
        return path_of(SHIPPED) if self.dvae == "pretrained" else self.dvae

    def check_slots(self, command):
        """ValueError, naming the command, for a run of the dVAE alone: its slots are untrained."""
        if self.dvae_alone == 1:
            trained = "a run whose slots were trained too"
            raise ValueError(f"{command} needs {trained}, got one of a dVAE alone")

    def check(self):
        super().check()
        if self.dvae and (self.dvae_alone or self.tokens != "likeliest"):
            raise ValueError(
                "dvae must be left out with dvae_alone and with tokens 'sampled', "
                f"as a trained one learns no more, got {self.dvae}"
            )
        if self.image_size % PATCH:
            raise ValueError(f"image_size must be a multiple of {PATCH}, got {self.image_size}")
        if self.dim % self.heads:
            raise ValueError(f"heads must divide dim={self.dim}, got {self.heads}")
