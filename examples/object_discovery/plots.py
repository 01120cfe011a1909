"""Pictures of a run: curves, and what every slot has drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..shared import plots
from ..shared.modules import seen_by
from ..shared.plots import plt

COLOURS = plt.get_cmap("tab20")
MEASURED = {"fg_ari": "FG-ARI"}, "100 pictures", (0, 1)


def discovery(model, pictures, config, out, count=6):
    """DIR/discovery.png: two rows for each picture.

    Above: input, reconstruction, each slot's picture; below: true objects, found objects, each
    slot's mask. DIR/attention.png: the attention of every slot.
    """
    images, true, scene = seen_by(model, pictures, config, count)
    rows = []
    for n, image in enumerate(images):
        masks = scene.masks[n, :, 0].cpu().numpy()
        found = masks.argmax(0)
        there = true[0][n] if true else np.full_like(found, 15)  # grey
        rows += [
            [image, as_image(scene.reconstruction[n]), *map(as_image, scene.pictures[n])],
            [*(COLOURS(labels % 20)[..., :3] for labels in (there, found)), *masks],
        ]
    names = ("input", "drawn", *(f"slot {k + 1}" for k in range(scene.masks.shape[1])))
    plots.sheet(rows, Path(out) / "discovery.png", names)
    plots.attention_figure(images, scene.attention, Path(out) / "attention.png")


def as_image(values):
    """(3, S, S) in [-1, 1] to (S, S, 3) in [0, 1]."""
    return np.clip(values.permute(1, 2, 0).cpu().numpy() / 2 + 0.5, 0, 1)
