"""Figures that the pipelines share: curves of a run, the attention of every slot."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from .files import write_atomically  # noqa: E402


def curves(out, labels, ylabel, ylim=None):
    """DIR/curves.png from DIR/metrics.jsonl: the loss, what `labels` names, how slots are used."""
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    seen, measured = [x for x in lines if "slots" in x], [x for x in lines if set(labels) & set(x)]
    panels = 1 + bool(measured) + bool(seen)
    size = (4.4 * panels, 3.2)
    figure, (axes,) = plt.subplots(1, panels, figsize=size, layout="constrained", squeeze=False)
    axes[0].plot([x["step"] for x in lines], [x["loss"] for x in lines], lw=1)
    axes[0].set(xlabel="step", ylabel="loss", yscale="log")
    if measured:
        for key, label in labels.items():
            _line(axes[1], [(x["step"], x[key]) for x in lines if key in x], label)
        axes[1].set(xlabel="step", ylabel=ylabel, ylim=ylim)
    if seen:
        for key, label in (
            ("used", "slots used / K"),
            ("duplicates", "duplicates / K"),
            ("entropy", "entropy / log K"),
            ("prior", "largest prior"),
            ("floor", "variances at floor"),
        ):
            share = 1 / seen[0]["slots"]["slots"] if key in ("used", "duplicates") else 1
            points = [(x["step"], share * x["slots"][key]) for x in seen if key in x["slots"]]
            _line(axes[-1], points, label)
        axes[-1].set(xlabel="step", ylim=(-0.02, 1.02))
    for axis in axes[1:]:
        axis.legend(frameon=False, fontsize=7)
    save(figure, Path(out) / "curves.png")


def _line(axis, points, label):
    if points:
        axis.plot(*zip(*points), marker="o", ms=3, label=label)


def attention_figure(images, attention, path, titles=None, beside=()):
    """A row for each picture (S, S, 3) uint8: itself, then all but a slot's attention faded out.

    attention : tensor (n, N, K). titles : texts above the slots, a list for each picture.
    beside : name -> pictures of the same shape, between the two.
    """
    attention, names = attention.float().cpu().numpy(), ("input", *beside) if beside else ("",)
    slots, side, size = attention.shape[2], int(round(attention.shape[1] ** 0.5)), images.shape[1]
    nearest = np.arange(size) * side // size
    weights = attention.reshape(len(images), side, side, slots)[:, nearest][:, :, nearest]
    rows = []
    for n, image in enumerate(images):
        faded = [image / 255 * w + (1 - w) for w in np.moveaxis(weights[n], 2, 0)[..., None]]
        rows.append([image, *(pictures[n] for pictures in dict(beside).values()), *faded])
    sheet(rows, path, names, titles and [[""] * len(names) + row for row in titles])


def sheet(rows, path, names=(), titles=None):
    """Rows of pictures of one size, (S, S, 3) or grey (S, S), uint8 or in [0, 1].

    names : of the columns. titles : texts above the pictures, a list for each row.

    All are one image in one pair of axes, since axes take matplotlib far longer than a picture
    does.
    """
    size = len(rows[0][0])
    head, gap = size // 7 if titles else 0, 1 + size // 40
    canvas = np.ones((len(rows) * (head + size + gap), len(rows[0]) * (size + gap), 3))
    inch = 1.1 / (size + gap)
    lines = max((name.count("\n") + 1 for name in names), default=0)
    height = canvas.shape[0] * inch
    figure = plt.figure(figsize=(canvas.shape[1] * inch, height + 0.13 * lines))
    axis = figure.add_axes((0, 0, 1, height / (height + 0.13 * lines)))
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            y, x = i * (head + size + gap) + head, j * (size + gap)
            cell = cell / 255 if cell.dtype == np.uint8 else np.clip(cell, 0, 1)
            canvas[y : y + size, x : x + size] = cell if cell.ndim == 3 else cell[..., None]
            if titles and titles[i][j]:
                axis.text(x + size / 2, y - 1, titles[i][j], fontsize=6, ha="center", va="bottom")
    for j, name in enumerate(names):
        axis.text(j * (size + gap) + size / 2, -1, name, fontsize=6, ha="center", va="bottom")
    axis.imshow(canvas)
    axis.axis("off")
    save(figure, path)


def save(figure, path):
    write_atomically(path, lambda place: figure.savefig(place, format="png", dpi=150))
    plt.close(figure)
