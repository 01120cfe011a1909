"""Pictures of a run: curves, what is written from the slots, and from the slots of two pictures."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .. import plots
from ..pictures import eval_seeds, to_input
from .train import to_pixels


def curves(out):
    """DIR/curves.png: the loss; cross-entropy (Fig. 2 of the paper) and the dVAE's error where they were measured; the slots."""
    plots.curves(
        out,
        {"cross_entropy": "cross-entropy", "dvae_mse": "MSE of the dVAE"},
        "a picture's sum, 100 pictures",
        (0, None),
    )


class Written(NamedTuple):
    """Pictures (n, S, S, 3) uint8 and what a model makes of them."""

    input: np.ndarray
    reconstruction: np.ndarray  # of the dVAE alone
    generated: np.ndarray  # from the slots
    slots: torch.Tensor  # (n, K, D)
    attention: torch.Tensor  # (n, N, K)


@torch.no_grad()
def write(model, pictures, config) -> Written:
    """Read all `pictures` and write them again."""
    (images,) = pictures.batch(list(range(len(pictures))))
    model.eval()
    inputs = to_input(images, next(model.parameters()).device)
    tokens, slots, attention = model.encode(
        inputs, eval_seeds(range(len(images))), config.eval_iters
    )
    written = Written(
        images,
        to_pixels(model.dvae.picture(tokens)),
        to_pixels(model.generate(slots)),
        slots,
        attention,
    )
    model.train()
    return written


def written_figure(written, path):
    """A row for each picture: input, the dVAE's, the one written from the slots, every slot's attention."""
    plots.attention_figure(
        written.input,
        written.attention.float().cpu().numpy(),
        path,
        beside={"dVAE": written.reconstruction, "written": written.generated},
    )


@torch.no_grad()
def samples(model, pictures, config, out):
    """DIR/samples.png: see `written_figure`.

    DIR/mixed.png: pictures written from the slots of two pictures; see `mix`.
    """
    written = write(model, pictures, config)
    written_figure(written, Path(out) / "samples.png")
    model.eval()
    mixed = {
        name: to_pixels(model.generate(both))
        for name, both in mix(written.slots, written.attention).items()
    }
    model.train()
    columns = {
        "first": written.input[0::2],
        "second": written.input[1::2],
        "first, written": written.generated[0::2],
        "second, written": written.generated[1::2],
        **mixed,
    }
    plots.sheet(list(zip(*columns.values())), Path(out) / "mixed.png", columns)


def mix(slots, attention):
    """Slots (B, K, D) of the pictures 0 and 1, 2 and 3, ... in other sets: name -> (B / 2, K, D).

    A picture's slots are taken by how much of it they attend to; the largest is mostly the background.
    """
    order = attention.sum(1).argsort(1, descending=True)
    ranked = slots.gather(1, order[..., None].expand_as(slots))
    pairs = len(slots) // 2 * 2
    first, second = ranked[0:pairs:2], ranked[1:pairs:2]

    def from_second(taken):
        return torch.where(
            torch.tensor([k in taken for k in range(slots.shape[1])], device=slots.device)[:, None],
            second,
            first,
        )

    ranks = range(slots.shape[1])
    return {
        "second slot swapped,\nfirst": from_second({1}),
        "second slot swapped,\nsecond": from_second(set(ranks) - {1}),
        "every other slot": from_second(set(ranks[1::2])),
    }
