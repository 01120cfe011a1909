"""What a trained model makes of a user's picture: a list of objects."""

from __future__ import annotations

from textwrap import fill

import numpy as np

from ..data.properties import COORDINATE_SCALE, COORDINATES, REAL, likeliest
from ..data.scenes import project
from ..shared import plots
from ..shared.modules import evaluation
from ..shared.pictures import eval_seeds, to_input
from ..shared.plots import plt
from ..shared.show import Shown
from .listing import without_repeats
from .plots import LISTED, knows_camera, mark

HEAD = "{name} as the model reads it, and the objects that it lists: confidence, kind, place."
SLOTS = f"{plots.ATTENTION} Above each: the confidence that it holds an object."


def show(model, given, config, seed) -> Shown:
    """The objects of a picture.

    figures : objects, those with a confidence above one half, and unlikely, the other slots; both
        the most confident first. Each has its slot, confidence, coordinates (x, y, z, as in the
        data), size, color, material, shape, the probability of each of these, and `place` in the
        user's pixels where the camera is known.
    """
    with evaluation(model) as device:
        inputs, seeds = to_input(given.image[None], device), eval_seeds([0], seed)
        found, attention = model(inputs, seeds, config.eval_iters, return_attention=True)
    found = without_repeats(found.float().cpu().numpy(), config.least_distance)[0]
    order = np.argsort(-found[:, REAL], kind="stable")
    camera = knows_camera(config)
    objects = [as_object(found[k], k + 1, given, camera) for k in order]
    listed = [one for one in objects if one["confidence"] > LISTED]
    lines = [f"{len(listed)} objects", *map(in_words, listed)]

    def draw(path):
        marked = found[found[:, REAL] > LISTED] if camera else ()
        titles = [[f"slot {k + 1}: {p:.2f}" for k, p in enumerate(found[:, REAL])]]
        rows = plots.faded(given.image[None], attention)
        plots.save(figure(given, marked, lines[1:], rows, titles), path)

    return Shown({"objects": listed, "unlikely": objects[len(listed) :]}, lines, draw)


def figure(given, marked, lines, slots, titles):
    """The picture with the marked objects, the list beside it, each slot's attention below."""
    width = max(plots.CELL * len(titles[0]), 7.5)
    below = width / len(titles[0]) * plots.tile_height(slots, titles)
    above = max(2.8, 0.14 * len(lines))
    head = fill(HEAD.format(name=given.path.name), int(15 * width))
    top = 0.17 * (head.count("\n") + 1) + 0.1
    height = top + above + 0.3 + below
    whole = plt.figure(figsize=(width, height))
    whole.text(0.05 / width, 1 - 0.05 / height, head, **plots.HEAD)
    axes = whole.add_axes((0.05 / width, 1 - (top + 2.8) / height, 2.8 / width, 2.8 / height))
    axes.imshow(given.image)
    mark(axes, marked, len(given.image), True)
    axes.axis("off")
    words = "\n".join(lines) or "no object that the model is sure of"
    font = {"family": "monospace", "fontsize": 7.5, "va": "top"}
    whole.text(3.0 / width, 1 - (top + 0.02) / height, words, **font)
    whole.text(0.05 / width, (below + 0.2) / height, SLOTS, **plots.HEAD)
    plots.tiles(whole.add_axes((0, 0, 1, below / height)), slots, titles=titles)
    return whole


def as_object(row, slot, given, camera):
    coordinates = row[COORDINATES].astype(float) * COORDINATE_SCALE
    properties = likeliest(row)
    one = {"slot": int(slot), "confidence": round(float(row[REAL]), 4)}
    one["coordinates"] = [round(x, 3) + 0.0 for x in coordinates.tolist()]
    one |= {name: value for name, (value, _) in properties.items()}
    one["probability"] = {name: round(share, 4) for name, (_, share) in properties.items()}
    if camera:
        (x, y), _ = project(coordinates, len(given.image))
        one["place"] = given.place(x, y)
    return one


def in_words(one):
    x, y, z = one["coordinates"]
    words = " ".join(one[name] for name in ("size", "color", "material", "shape"))
    return f"{one['confidence']:.2f}  {words:<27} at ({x:5.2f}, {y:5.2f}, {z:5.2f})"
