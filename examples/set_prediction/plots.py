"""Pictures of a run: curves, predictions beside the truth, the attention of every slot."""

from __future__ import annotations

from math import inf
from pathlib import Path

import numpy as np

from ..data.properties import COORDINATE_SCALE, COORDINATES, REAL, describe
from ..data.scenes import RGB, project
from ..shared import plots
from ..shared.modules import seen_by
from ..shared.plots import plt
from .listing import without_repeats

ATTENTION = f"{plots.ATTENTION} Numbers: how sure the model is that a slot holds an object."
MARKERS = {"cube": "s", "sphere": "o", "cylinder": "D"}
AP = {"ap_inf": "AP$_\\infty$", "ap_0.5": "AP$_{0.5}$"}
MEASURED = AP, "average precision (%)", (0, 100)
LISTED = 0.5  # presence above which a slot is in the list


def predictions(model, pictures, config, out, count=6):
    """DIR/predictions.png: what was found (marks) and what is there (rings).

    DIR/attention.png: the attention of every slot.
    """
    images, (targets,), (found, attention) = seen_by(
        model, pictures, config, count, return_attention=True
    )
    found = without_repeats(found.float().cpu().numpy(), config.least_distance)
    on_picture = knows_camera(config)
    words = [_words(prediction, target) for prediction, target in zip(found, targets)]
    lines = 0.115 * max(text.count("\n") + 1 for text in words)  # inches
    figure, axes = plt.subplots(
        2,
        len(images),
        figsize=(2.1 * len(images), 2.3 + lines),
        layout="constrained",
        squeeze=False,
        height_ratios=(2.1, lines),
    )
    for image, prediction, target, text, (top, bottom) in zip(
        images, found, targets, words, axes.T
    ):
        top.imshow(image)
        if on_picture:
            mark(top, _there(target), image.shape[0], False)
            mark(top, _there(prediction), image.shape[0], True)
        font = {"fontsize": 7, "family": "monospace"}
        bottom.text(0, 1, text, va="top", transform=bottom.transAxes, **font)
        top.axis("off")
        bottom.axis("off")
    if on_picture:
        text = "Rings: the true objects. Marks: the predicted ones, in their colour and shape."
        figure.suptitle(text, fontsize=10)
    plots.save(figure, Path(out) / "predictions.png", 120)
    titles = [[f"{presence:.2f}" for presence in row] for row in found[:, :, REAL]]
    plots.attention_figure(images, attention, Path(out) / "attention.png", titles, head=ATTENTION)


def _there(rows):
    return rows[rows[:, REAL] > LISTED]


def knows_camera(config):
    """Whether pictures are built-in scenes, whose camera is known."""
    return config.data is None and config.dataset in (None, "scenes")


def mark(axes, rows, size, filled):
    """Objects, rows of predictions or targets, on a picture of a built-in scene."""
    for row in rows:
        place, _ = project(row[COORDINATES].astype(float) * COORDINATE_SCALE, size)
        width, colour, _, shape = describe(row).split()
        large = width == "large"
        if filled:
            style = {"ms": 8 if large else 5, "mec": "black", "mew": 0.9}
            axes.plot(*place, MARKERS[shape], mfc=np.array(RGB[colour]) / 255, **style)
        else:
            axes.plot(*place, "o", ms=16 if large else 10, mec="white", mew=1.3, mfc="none")
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))


def _words(prediction, target):
    lines = ["TRUE", *map(describe, _there(target)), "", "PREDICTED, confidence"]
    return "\n".join(lines + [f"{describe(row)} {row[REAL]:.2f}" for row in _there(prediction)])


def table(values, deviations) -> str:
    """AP in %, a line for people."""
    names = ["∞" if t == inf else f"{t:g}" for t in values]
    cells = [f"{100 * values[t]:.1f} ± {100 * deviations[t]:.1f}" for t in values]
    width = max(map(len, cells)) + 2
    head, line = ("".join(text.rjust(width) for text in texts) for texts in (names, cells))
    return f"AP (%) at {head}\n{' ' * 10}{line}"
