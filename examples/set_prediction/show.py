"""What a trained model makes of a user's picture: a list of objects."""

from __future__ import annotations

import numpy as np

from ..data.properties import COORDINATE_SCALE, COORDINATES, REAL, likeliest
from ..data.scenes import project
from ..shared import plots
from ..shared.modules import evaluation
from ..shared.pictures import eval_seeds, to_input
from ..shared.plots import plt
from ..shared.show import Shown
from .plots import LISTED, knows_camera, mark

HEAD = "{name}: {what} (the number is the confidence that a slot holds an object)"


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
    found = found[0].float().cpu().numpy()
    order = np.argsort(-found[:, REAL], kind="stable")
    camera = knows_camera(config)
    objects = [as_object(found[k], k + 1, given, camera) for k in order]
    listed = [one for one in objects if one["confidence"] > LISTED]
    lines = [f"{len(listed)} objects", *map(in_words, listed)]

    def draw(path):
        count, lines = len(found), 0.16 * max(len(listed), 1) + 0.2
        width = max(plots.CELL * count, 7.0)
        below = plots.CELL * (1 + 1 / 7) * width / (plots.CELL * count)
        above = max(3.0, lines)
        figure = plt.figure(figsize=(width, above + below + 0.7))
        top, bottom = figure.subfigures(2, 1, height_ratios=(above + 0.4, below + 0.3))
        picture, text = top.subplots(1, 2, width_ratios=(1, max(1.0, width / above - 1)))
        top.subplots_adjust(0.01, 0.02, 0.99, 0.88, 0.05)
        picture.imshow(given.image)
        if camera:
            mark(picture, found[found[:, REAL] > LISTED], len(given.image), True)
        words = "\n".join(map(in_words, listed)) or "no objects found"
        text.text(0, 1, words, va="top", family="monospace", fontsize=8)
        for axes in (picture, text):
            axes.axis("off")
        what = "objects, marked in their colour and shape" if camera else "objects"
        top.suptitle(HEAD.format(name=given.path.name, what=what), fontsize=9)
        titles = [[f"slot {k + 1}: {p:.2f}" for k, p in enumerate(found[:, REAL])]]
        rows = plots.faded(given.image[None], attention)
        axes = bottom.add_axes((0.01, 0.0, 0.98, 0.86))
        plots.tiles(axes, rows, titles=titles)
        bottom.suptitle(plots.ATTENTION, fontsize=9)
        plots.save(figure, path)

    return Shown({"objects": listed, "unlikely": objects[len(listed) :]}, lines, draw)


def as_object(row, slot, given, camera):
    coordinates = row[COORDINATES].astype(float) * COORDINATE_SCALE
    properties = likeliest(row)
    one = {"slot": int(slot), "confidence": round(float(row[REAL]), 4)}
    one["coordinates"] = [round(x, 3) for x in coordinates.tolist()]
    one |= {name: value for name, (value, _) in properties.items()}
    one["probability"] = {name: round(share, 4) for name, (_, share) in properties.items()}
    if camera:
        (x, y), _ = project(coordinates, len(given.image))
        one["place"] = given.place(x, y)
    return one


def in_words(one):
    x, y, z = one["coordinates"]
    words = " ".join(one[name] for name in ("size", "color", "material", "shape"))
    return f"{one['confidence']:.2f}  {words:<29} at ({x:5.2f}, {y:5.2f}, {z:5.2f})"
