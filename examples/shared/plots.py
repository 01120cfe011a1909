"""Figures that the pipelines share: curves of a run, the attention of every slot."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import fill

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from .files import write_atomically  # noqa: E402

ATTENTION = "What each slot attends to: places that belong to other slots are white."


def curves(out, labels, ylabel, ylim=None):
    """DIR/curves.png from DIR/metrics.jsonl: the loss, what `labels` names, how slots are used."""
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    seen, measured = [x for x in lines if "slots" in x], [x for x in lines if set(labels) & set(x)]
    panels = 1 + bool(measured) + bool(seen)
    size = (3.6 * panels, 3.3)
    figure, (axes,) = plt.subplots(1, panels, figsize=size, layout="constrained", squeeze=False)
    axes[0].plot([x["step"] for x in lines], [x["loss"] for x in lines], lw=1)
    axes[0].set(title="Training loss", ylabel="loss of a batch", yscale="log")
    if measured:
        for key, label in labels.items():
            _line(axes[1], [(x["step"], x[key]) for x in lines if key in x], label)
        axes[1].set(title="Evaluation, 100 pictures", ylabel=ylabel, ylim=ylim)
    if seen:
        slots = seen[0]["slots"]["slots"]
        for key, label in (
            ("used", f"slots used / {slots}"),
            ("duplicates", f"duplicates / {slots}"),
            ("entropy", f"attention entropy / log {slots}"),
            ("prior", "largest prior"),
            ("floor", "variances at their floor"),
        ):
            share = 1 / slots if key in ("used", "duplicates") else 1
            points = [(x["step"], share * x["slots"][key]) for x in seen if key in x["slots"]]
            _line(axes[-1], points, label)
        axes[-1].set(title="How slots are used", ylabel="share", ylim=(-0.02, 1.02))
    for axis in axes:
        axis.set(xlabel="training step", xlim=(0, None))
    for axis in axes[1:]:
        axis.legend(frameon=False, fontsize=8)
    save(figure, Path(out) / "curves.png", 120)


def _line(axis, points, label):
    if points:
        axis.plot(*zip(*points), marker="o", ms=3, label=label)


MOST_SHOWN = 16  # slots


def attention_figure(images, attention, path, titles=None, beside=(), head=ATTENTION):
    """A row for each picture (S, S, 3) uint8: itself, then all but a slot's attention faded out.

    attention : tensor (n, N, K). titles : texts above the slots, a list for each picture.
    beside : name -> pictures of the same shape, between the two. head : a sentence above all.
    Of more than MOST_SHOWN slots, those that attend most.
    """
    shown = attention.sum((0, 1)).argsort(descending=True)[:MOST_SHOWN].sort().values
    rows = faded(images, attention[..., shown])
    rows = [
        [image, *(pictures[n] for pictures in dict(beside).values()), *row]
        for n, (image, row) in enumerate(zip(images, rows))
    ]
    first = ("input", *beside)
    of_slots = slot_names(attention.shape[2])
    names = (*first, *(of_slots[k] for k in shown))
    titles = titles and [[""] * len(first) + [row[k] for k in shown] for row in titles]
    sheet(rows, path, names, titles, head)


def slot_names(count):
    return [f"slot {k + 1}" for k in range(count)]


def faded(images, attention):
    """A list for each picture (S, S, 3) uint8: for each slot, all but its attention faded out."""
    attention = attention.float().cpu().numpy()
    slots, side, size = attention.shape[2], int(round(attention.shape[1] ** 0.5)), images.shape[1]
    nearest = np.arange(size) * side // size
    weights = attention.reshape(len(images), side, side, slots)[:, nearest][:, :, nearest]
    return [
        [image / 255 * w + (1 - w) for w in np.moveaxis(weights[n], 2, 0)[..., None]]
        for n, image in enumerate(images)
    ]


HEAD = {"fontsize": 8, "va": "top", "parse_math": False}  # a file's name may have dollars
CELL = 1.1  # inches of a picture of a sheet, with its gap


def sheet(rows, path, names=(), titles=None, head=""):
    """Rows of pictures of one size: see `tiles`. head : a sentence above them."""
    width = len(rows[0]) * CELL
    head = fill(head, int(15 * width))
    lines, above = max((name.count("\n") + 1 for name in names), default=0), head.count("\n") + 1
    height = len(rows) * CELL * tile_height(rows, titles)
    whole = height + 0.14 * lines + (0.17 * above + 0.06 if head else 0)
    figure = plt.figure(figsize=(width, whole))
    tiles(figure.add_axes((0, 0, 1, height / whole)), rows, names, titles)
    if head:
        figure.text(0.05 / width, 1 - 0.05 / whole, head, **HEAD)
    save(figure, path)


def tile_height(rows, titles):
    """Of a row of `tiles`, in widths of a picture."""
    size = len(rows[0][0])
    head, gap = size // 7 if titles else 0, 1 + size // 40
    return (head + size + gap) / (size + gap)


def tiles(axis, rows, names=(), titles=None):
    """Draw rows of pictures of one size, (S, S, 3) or grey (S, S), uint8 or in [0, 1].

    names : of the columns. titles : texts above the pictures, a list for each row.

    All are one image in one pair of axes, since axes take matplotlib far longer than a picture
    does.
    """
    size = len(rows[0][0])
    head, gap = size // 7 if titles else 0, 1 + size // 40
    canvas = np.ones((len(rows) * (head + size + gap), len(rows[0]) * (size + gap), 3))
    text = {"fontsize": 7, "ha": "center", "va": "bottom"}
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            y, x = i * (head + size + gap) + head, j * (size + gap)
            cell = cell / 255 if cell.dtype == np.uint8 else np.clip(cell, 0, 1)
            canvas[y : y + size, x : x + size] = cell if cell.ndim == 3 else cell[..., None]
            frame = plt.Rectangle((x - 0.5, y - 0.5), size, size, fill=False, ec="0.8", lw=0.5)
            axis.add_patch(frame)  # of what is white
            if titles and titles[i][j]:
                axis.text(x + size / 2, y - 1, titles[i][j], **text)
    for j, name in enumerate(names):
        axis.text(j * (size + gap) + size / 2, -1, name, **text)
    axis.imshow(canvas)
    axis.axis("off")


def save(figure, path, dpi=150):
    write_atomically(path, lambda place: figure.savefig(place, format="png", dpi=dpi))
    plt.close(figure)
