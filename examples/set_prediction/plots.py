"""Pictures of a run: curves, predictions beside the truth, the attention of every slot."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from ..data import properties  # noqa: E402
from ..data.scenes import RGB, project  # noqa: E402
from .train import seed_of, to_input  # noqa: E402

MARKERS = {"cube": "s", "sphere": "o", "cylinder": "D"}


def curves(out):
    """DIR/curves.png from DIR/metrics.jsonl: loss, and AP where it was measured."""
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot([x["step"] for x in lines], [x["loss"] for x in lines], lw=1)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    for key, label in (("ap_inf", "AP$_\\infty$"), ("ap_0.5", "AP$_{0.5}$")):
        points = [(x["step"], x[key]) for x in lines if key in x]
        right.plot(*zip(*points) if points else ((), ()), marker="o", ms=3, label=label)
    right.set(xlabel="step", ylabel="AP (%), 100 pictures", ylim=(0, 100))
    right.legend(frameon=False)
    _save(figure, Path(out) / "curves.png")


@torch.no_grad()
def predictions(model, pictures, config, out, count=6):
    """DIR/predictions.png: what was found (filled) and what is there (rings); DIR/attention.png: every slot."""
    device = next(model.parameters()).device
    images, targets = pictures.batch(list(range(min(count, len(pictures)))))
    seeds = [seed_of(1_000_000, i) for i in range(len(images))]
    model.eval()
    found, attention = model(to_input(images, device), seeds, num_iters=config.eval_iters, return_attention=True)
    model.train()
    found, attention = found.float().cpu().numpy(), attention.float().cpu().numpy()
    on_picture = config.data is None  # the camera of built-in scenes is known
    figure, axes = plt.subplots(2, len(images), figsize=(2.1 * len(images), 4.0), layout="constrained", squeeze=False)
    for image, prediction, target, (top, bottom) in zip(images, found, targets, axes.T):
        top.imshow(image)
        if on_picture:
            _mark(top, target[target[:, properties.REAL] > 0.5], image.shape[0], False)
            _mark(top, prediction[prediction[:, properties.REAL] > 0.5], image.shape[0], True)
        bottom.text(0, 1, _words(prediction, target), va="top", fontsize=5.2, family="monospace")
        top.axis("off")
        bottom.axis("off")
    figure.suptitle("filled: predicted, ring: true" if on_picture else "", fontsize=8)
    _save(figure, Path(out) / "predictions.png")
    _attention_figure(images, found, attention, Path(out) / "attention.png")


def _mark(axes, rows, size, filled):
    for row in rows:
        place, _ = project(row[properties.COORDINATES].astype(float) * properties.COORDINATE_SCALE, size)
        words = properties.describe(row).split()
        colour = np.array(RGB[words[1]]) / 255
        axes.plot(*place, marker=MARKERS[words[3]], ms=7 if words[0] == "large" else 4, mec="white", mew=0.8,
                  mfc=colour if filled else "none", alpha=1 if filled else 0.9)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))


def _words(prediction, target):
    there = target[target[:, properties.REAL] > 0.5]
    sure = prediction[prediction[:, properties.REAL] > 0.5]
    lines = ["true"] + [properties.describe(r) for r in there] + ["", "predicted"]
    return "\n".join(lines + [f"{properties.describe(r)} {r[properties.REAL]:.2f}" for r in sure])


def _attention_figure(images, found, attention, path):
    slots = attention.shape[2]
    side = int(round(attention.shape[1] ** 0.5))
    figure, axes = plt.subplots(len(images), slots + 1, figsize=(1.1 * (slots + 1), 1.18 * len(images)),
                                layout="constrained", squeeze=False)
    for row, image, prediction, weights in zip(axes, images, found, attention):
        row[0].imshow(image)
        for k in range(slots):
            size = image.shape[0]
            weight = np.kron(weights[:, k].reshape(side, side), np.ones((size // side, size // side)))
            weight = np.pad(weight, [(0, size - n) for n in weight.shape], mode="edge")
            row[k + 1].imshow((image / 255 * weight[..., None] + (1 - weight[..., None])).clip(0, 1))
            row[k + 1].set_title(f"{prediction[k, properties.REAL]:.2f}", fontsize=6, pad=1)
        for axis in row:
            axis.axis("off")
    _save(figure, path)


def _save(figure, path):
    figure.savefig(path, dpi=150)
    plt.close(figure)


def table(values, deviations) -> str:
    """AP in %, a line for people."""
    names = ["∞" if t == inf else f"{t:g}" for t in values]
    cells = [f"{100 * values[t]:.1f} ± {100 * deviations[t]:.1f}" for t in values]
    width = max(map(len, cells)) + 2
    return ("AP (%) at " + "".join(n.rjust(width) for n in names) + "\n" + " " * 10 + "".join(c.rjust(width) for c in cells))
