"""Pictures of a run: curves, and what every slot has drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..shared import plots
from ..shared.modules import evaluation, seen_by
from ..shared.pictures import to_input
from ..shared.plots import plt
from .model import slot_of_each_pixel

COLOURS = plt.get_cmap("tab20")
MEASURED = {"fg_ari": "FG-ARI"}, "FG-ARI, 1 is perfect", (0, 1)
HEAD = (
    "Two rows per picture. Above: the input, what the model draws, and what each slot draws. "
    "Below: the objects there {below}, those found (a colour for each slot), and each slot's mask."
)


def discovery(model, pictures, config, out, count=6):
    """DIR/discovery.png: two rows for each picture.

    Above: input, reconstruction, each slot's picture; below: true objects, found objects, each
    slot's mask. DIR/attention.png: the attention of every slot.
    """
    images, true, scene = seen_by(model, pictures, config, count)
    every = slots_of_pixels(scene, images)
    rows = []
    for n, (image, found) in enumerate(zip(images, every)):
        there = coloured(true[0][n]) if true else np.ones(image.shape)
        rows += two_rows(image, scene, n, there, coloured(found))
    below = "are" if true else "are (unknown here)"
    names = ("input", "drawn", *names_of(scene))
    plots.sheet(rows, Path(out) / "discovery.png", names, head=HEAD.format(below=below))
    plots.attention_figure(images, scene.attention, Path(out) / "attention.png")


def exchanged(model, pictures, config, path):
    """A row for each two pictures in turn, whose largest objects' slots are exchanged: a sheet."""
    images, _, (slots, attention) = seen_by(model, pictures, config, call=model.find)
    inputs = to_input(images, slots.device)
    with evaluation(model):
        scene = model.draw(slots, attention)
        found = slot_of_each_pixel(scene, inputs).flatten(1)
        count = slots.shape[1]
        area = torch.nn.functional.one_hot(found, scene.masks.shape[1]).sum(1)[:, :count]
        if scene.masks.shape[1] == count:  # the background has the largest of these
            area = area.scatter(1, area.argmax(1, keepdim=True), 0)
        largest = area.argmax(1)
        other = torch.arange(len(slots)) ^ 1
        given = slots[other, largest[other]][:, None]
        parts = (scene.group == largest[:, None])[..., None]  # all that are of the object
        edited = model.draw(torch.where(parts, given, slots), attention).reconstruction
    cells = [images, [as_image(x) for x in scene.reconstruction], [as_image(x) for x in edited]]
    rows = [[column[n + i] for column in cells for i in (0, 1)] for n in range(0, len(images), 2)]
    names = ("input A", "input B", "A drawn", "B drawn", "A with\nB's object", "B with\nA's object")
    plots.sheet(rows, path, names)


def two_rows(image, scene, n, *below):
    """The n-th picture, its reconstruction and slots; `below` these two, and the slots' masks."""
    above = map(as_image, (scene.reconstruction[n], *scene.pictures[n]))
    return [image, *above], [*below, *scene.masks[n, :, 0].cpu().numpy()]


def names_of(scene):
    """Of the slots, and of the background where it has one of its own."""
    count, slots = scene.masks.shape[1], scene.group.shape[1]
    return [*plots.slot_names(slots), *["background"] * (count - slots)]


def slots_of_pixels(scene, images):
    """The slot of each pixel (n, S, S) of pictures (n, S, S, 3) uint8."""
    return slot_of_each_pixel(scene, to_input(images, scene.masks.device)).cpu().numpy()


def coloured(labels):
    return COLOURS(labels % 20)[..., :3]


def as_image(values):
    """(3, S, S) in [-1, 1] to (S, S, 3) in [0, 1]."""
    return np.clip(values.permute(1, 2, 0).cpu().numpy() / 2 + 0.5, 0, 1)
