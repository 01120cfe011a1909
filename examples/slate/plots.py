"""Pictures of a run: curves, what is written from the slots, and from the slots of two pictures."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..shared import plots
from ..shared.modules import evaluation, seen_by
from .train import to_pixels

# cross-entropy: Figure 2 of the paper
LABELS = {"cross_entropy": "cross-entropy", "dvae_mse": "MSE of the dVAE"}
MEASURED = LABELS, "sum over a picture, lower is better", (0, None)
HEAD = (
    "Input; the dVAE's reconstruction from all tokens; what the transformer writes from the slots "
    "alone. Then what each slot attends to: places that belong to other slots are white."
)
MIXED = (
    "Two pictures, both written again from their slots, then sets of mixed slots: with the second "
    "largest slot swapped, and with every other slot from the second picture."
)


class Written(NamedTuple):
    """Pictures (n, S, S, 3) uint8 and what a model makes of them."""

    input: np.ndarray
    reconstruction: np.ndarray  # of the dVAE alone
    generated: np.ndarray  # from the slots
    slots: torch.Tensor  # (n, K, D)
    attention: torch.Tensor  # (n, N, K)


def write(model, pictures, config) -> Written:
    """Read all `pictures` and write them again."""

    def again(*arguments, **options):
        tokens, slots, attention = model.encode(*arguments, **options)
        pictures = model.dvae.picture(tokens), model.generate(slots)
        return *map(to_pixels, pictures), slots, attention

    images, _, rest = seen_by(model, pictures, config, call=again)
    return Written(images, *rest)


def written_figure(written, path, name=""):
    """A row for each picture: input, the dVAE's, the one from the slots, each slot's attention.

    name : of the only picture, to be shown.
    """
    beside = {"dVAE": written.reconstruction, "written": written.generated}
    head = f"{name}. {HEAD}" if name else HEAD
    plots.attention_figure(written.input, written.attention, path, beside=beside, head=head)


def samples(model, pictures, config, out):
    """DIR/samples.png: see `written_figure`.

    DIR/mixed.png: pictures written from the slots of two pictures; see `mix`.
    """
    written = write(model, pictures, config)
    written_figure(written, Path(out) / "samples.png")
    mixed = mix(written.slots, written.attention)
    with evaluation(model):
        mixed = {name: to_pixels(model.generate(both)) for name, both in mixed.items()}
    columns = {
        "first": written.input[0::2],
        "second": written.input[1::2],
        "first, written": written.generated[0::2],
        "second, written": written.generated[1::2],
        **mixed,
    }
    plots.sheet(list(zip(*columns.values())), Path(out) / "mixed.png", columns, head=MIXED)


def mix(slots, attention):
    """Slots (B, K, D) of the pictures 0 and 1, 2 and 3, ... in other sets: name -> (B / 2, K, D).

    A picture's slots are taken by how much of it they attend to; the largest is mostly the
    background.
    """
    order = attention.sum(1).argsort(1, descending=True)
    ranked = slots.gather(1, order[..., None].expand_as(slots))
    pairs = len(slots) // 2 * 2
    first, second = ranked[0:pairs:2], ranked[1:pairs:2]
    ranks = range(slots.shape[1])

    def from_second(taken):
        chosen = torch.tensor([k in taken for k in ranks], device=slots.device)
        return torch.where(chosen[:, None], second, first)

    return {
        "second slot\nswapped, first": from_second({1}),
        "second slot\nswapped, second": from_second(set(ranks) - {1}),
        "every other slot": from_second(set(ranks[1::2])),
    }
