"""Pictures of a run: curves, what is written from the slots, and from the slots of two pictures."""

from __future__ import annotations

from pathlib import Path

import torch

from .. import plots
from ..pictures import seed_of, to_input
from ..plots import plt
from .train import to_pixels


def curves(out):
    """DIR/curves.png: the loss; cross-entropy (Fig. 2 of the paper) and the dVAE's error where they were measured; the slots."""
    plots.curves(out, {"cross_entropy": "cross-entropy", "dvae_mse": "MSE of the dVAE"}, "a picture's sum, 100 pictures", (0, None))


@torch.no_grad()
def samples(model, pictures, config, out):
    """DIR/samples.png: input, the dVAE's picture, the one written from the slots, every slot's attention.

    DIR/mixed.png: pictures written from the slots of two pictures; see `mix`.
    """
    device = next(model.parameters()).device
    (images,) = pictures.batch(list(range(len(pictures))))
    model.eval()
    seeds = [seed_of(1_000_000, i) for i in range(len(images))]
    tokens, slots, attention = model.encode(to_input(images, device), seeds, config.eval_iters)
    beside = {"dVAE": to_pixels(model.dvae.picture(tokens)), "written": to_pixels(model.generate(slots))}
    plots.attention_figure(images, attention.float().cpu().numpy(), Path(out) / "samples.png", beside=beside)
    if len(images) > 1:
        mixed = {name: to_pixels(model.generate(both)) for name, both in mix(slots, attention).items()}
        _grid({"first": images[0::2], "second": images[1::2],
               "first, written": beside["written"][0::2], "second, written": beside["written"][1::2], **mixed},
              Path(out) / "mixed.png")
    model.train()


def mix(slots, attention):
    """Slots (B, K, D) of the pictures 0 and 1, 2 and 3, ... in other sets: name -> (B / 2, K, D).

    A picture's slots are taken by how much of it they attend to; the largest is mostly the background.
    """
    order = attention.sum(1).argsort(1, descending=True)
    ranked = slots.gather(1, order[..., None].expand_as(slots))
    pairs = len(slots) // 2 * 2
    first, second = ranked[0:pairs:2], ranked[1:pairs:2]

    def from_second(taken):
        return torch.where(torch.tensor([k in taken for k in range(slots.shape[1])], device=slots.device)[:, None], second, first)

    ranks = range(slots.shape[1])
    return {"second slot swapped,\nfirst": from_second({1}), "second slot swapped,\nsecond": from_second(set(ranks) - {1}),
            "every other slot": from_second(set(ranks[1::2]))}


def _grid(columns, path):
    rows = min(len(pictures) for pictures in columns.values())
    figure, axes = plt.subplots(rows, len(columns), figsize=(1.3 * len(columns), 1.4 * rows), layout="constrained", squeeze=False)
    for line, (name, pictures) in zip(axes.T, columns.items()):
        line[0].set_title(name, fontsize=6, pad=1)
        for axis, picture in zip(line, pictures):
            axis.imshow(picture)
            axis.axis("off")
    plots.save(figure, path)
