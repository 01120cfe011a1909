"""Pictures of a run: curves, predictions beside the truth, the attention of every slot."""

from __future__ import annotations

from math import inf
from pathlib import Path

import numpy as np
import torch

from .. import plots
from ..data import properties
from ..data.scenes import RGB, project
from ..pictures import eval_seeds, to_input
from ..plots import plt

MARKERS = {"cube": "s", "sphere": "o", "cylinder": "D"}


def curves(out):
    """DIR/curves.png: loss, and AP where it was measured."""
    plots.curves(
        out, {"ap_inf": "AP$_\\infty$", "ap_0.5": "AP$_{0.5}$"}, "AP (%), 100 pictures", (0, 100)
    )


@torch.no_grad()
def predictions(model, pictures, config, out, count=6):
    """DIR/predictions.png: what was found (marks) and what is there (rings); DIR/attention.png: every slot."""
    device = next(model.parameters()).device
    images, targets = pictures.batch(list(range(min(count, len(pictures)))))
    seeds = eval_seeds(range(len(images)))
    model.eval()
    found, attention = model(
        to_input(images, device), seeds, num_iters=config.eval_iters, return_attention=True
    )
    model.train()
    found, attention = found.float().cpu().numpy(), attention.float().cpu().numpy()
    on_picture = config.data is None  # the camera of built-in scenes is known
    words = [_words(prediction, target) for prediction, target in zip(found, targets)]
    lines = 0.085 * max(text.count("\n") + 1 for text in words)  # inches
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
            _mark(top, target[target[:, properties.REAL] > 0.5], image.shape[0], False)
            _mark(top, prediction[prediction[:, properties.REAL] > 0.5], image.shape[0], True)
        bottom.text(
            0, 1, text, va="top", fontsize=5.2, family="monospace", transform=bottom.transAxes
        )
        top.axis("off")
        bottom.axis("off")
    if on_picture:
        figure.suptitle(
            "rings: the objects there are; marks: what the model lists, in its colour and shape",
            fontsize=8,
        )
    plots.save(figure, Path(out) / "predictions.png")
    titles = [[f"{presence:.2f}" for presence in row] for row in found[:, :, properties.REAL]]
    plots.attention_figure(images, attention, Path(out) / "attention.png", titles)


def _mark(axes, rows, size, filled):
    for row in rows:
        place, _ = project(
            row[properties.COORDINATES].astype(float) * properties.COORDINATE_SCALE, size
        )
        words = properties.describe(row).split()
        large = words[0] == "large"
        if filled:
            axes.plot(
                *place,
                MARKERS[words[3]],
                ms=8 if large else 5,
                mec="black",
                mew=0.9,
                mfc=np.array(RGB[words[1]]) / 255,
            )
        else:
            axes.plot(*place, "o", ms=16 if large else 10, mec="white", mew=1.3, mfc="none")
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))


def _words(prediction, target):
    there = target[target[:, properties.REAL] > 0.5]
    sure = prediction[prediction[:, properties.REAL] > 0.5]
    lines = ["true"] + [properties.describe(r) for r in there] + ["", "predicted"]
    return "\n".join(lines + [f"{properties.describe(r)} {r[properties.REAL]:.2f}" for r in sure])


def table(values, deviations) -> str:
    """AP in %, a line for people."""
    names = ["∞" if t == inf else f"{t:g}" for t in values]
    cells = [f"{100 * values[t]:.1f} ± {100 * deviations[t]:.1f}" for t in values]
    width = max(map(len, cells)) + 2
    return (
        "AP (%) at "
        + "".join(n.rjust(width) for n in names)
        + "\n"
        + " " * 10
        + "".join(c.rjust(width) for c in cells)
    )
