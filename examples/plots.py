"""Figures that the pipelines share: curves of a run, the attention of every slot."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402


def curves(out, labels, ylabel, ylim=None):
    """DIR/curves.png from DIR/metrics.jsonl: the loss, the values that `labels` names, and how the slots are used."""
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    seen = [x for x in lines if "slots" in x]
    figure, axes = plt.subplots(1, 3 if seen else 2, figsize=(13 if seen else 9, 3.2), layout="constrained")
    axes[0].plot([x["step"] for x in lines], [x["loss"] for x in lines], lw=1)
    axes[0].set(xlabel="step", ylabel="loss", yscale="log")
    for key, label in labels.items():
        _line(axes[1], [(x["step"], x[key]) for x in lines if key in x], label)
    axes[1].set(xlabel="step", ylabel=ylabel, ylim=ylim)
    if seen:
        for key, label in (("used", "slots used / K"), ("duplicates", "duplicates / K"), ("entropy", "entropy / log K"),
                           ("prior", "largest prior"), ("floor", "variances at floor")):
            share = 1 / seen[0]["slots"]["slots"] if key in ("used", "duplicates") else 1
            _line(axes[2], [(x["step"], share * x["slots"][key]) for x in seen if key in x["slots"]], label)
        axes[2].set(xlabel="step", ylim=(-0.02, 1.02))
    for axis in axes[1:]:
        axis.legend(frameon=False, fontsize=7)
    save(figure, Path(out) / "curves.png")


def _line(axis, points, label):
    if points:
        axis.plot(*zip(*points), marker="o", ms=3, label=label)


def attention_figure(images, attention, path, titles=None, beside=()):
    """A row for each picture (S, S, 3) uint8: itself, then with all but each slot's attention (N, K) faded out.

    beside : name -> pictures of the same shape, between the two.
    """
    slots, columns = attention.shape[2], ("input", *beside) if beside else ("",)
    side = int(round(attention.shape[1] ** 0.5))
    figure, axes = plt.subplots(len(images), slots + len(columns), figsize=(1.1 * (slots + len(columns)), 1.18 * len(images)),
                                layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], columns):
        axis.set_title(name, fontsize=6, pad=1)
    for n, (row, image, weights) in enumerate(zip(axes, images, attention)):
        for axis, picture in zip(row, (image, *(pictures[n] for pictures in dict(beside).values()))):
            axis.imshow(picture)
        for k, axis in enumerate(row[len(columns):]):
            size = image.shape[0]
            weight = np.kron(weights[:, k].reshape(side, side), np.ones((size // side, size // side)))
            weight = np.pad(weight, [(0, size - n) for n in weight.shape], mode="edge")
            axis.imshow((image / 255 * weight[..., None] + (1 - weight[..., None])).clip(0, 1))
            if titles is not None:
                axis.set_title(titles[n][k], fontsize=6, pad=1)
        for axis in row:
            axis.axis("off")
    save(figure, path)


def save(figure, path):
    figure.savefig(path, dpi=150)
    plt.close(figure)
