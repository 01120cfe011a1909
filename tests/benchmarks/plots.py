"""Three pictures: ratios to the fastest peer, fractions of the limit, times against sizes."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from .contenders import OURS, RECOMPUTE  # noqa: E402
from .report import SHORT, against_fastest, fraction, select  # noqa: E402


def _save(figure, path):
    figure.savefig(path, dpi=80, bbox_inches="tight")
    plt.close(figure)


def ratios(results, path):
    rows = results["peers"][::-1]
    figure, axes = plt.subplots(figsize=(8, 0.26 * len(rows) + 1))
    labels = [f"{row['shape']}, {SHORT[row['kind']]}, {row['mode']}" for row in rows]
    found = [against_fastest(row) for row in rows]
    bars = axes.barh(
        labels,
        [ratio for _, ratio in found],
        color=["C0" if r["kind"] == "SlotMixture" else "C1" for r in rows],
    )
    axes.bar_label(bars, [f"{ratio:.1f} ({name})" for name, ratio in found], fontsize=7, padding=2)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xlim(0, 1.6 * max(ratio for _, ratio in found))
    axes.set_xlabel(f"time of the fastest peer / ours, {rows[0]['threads']} threads")
    axes.tick_params(labelsize=8)
    _save(figure, path)


def fractions(results, path):
    rows = select(results["limit"], threads=1)
    groups = list(dict.fromkeys((row["shape"], row["kind"]) for row in rows))
    figure, axes = plt.subplots(figsize=(8, 3.5))
    for i, (way, gradient) in enumerate(
        (("forward", "full"), ("backward", "full"), ("backward", "implicit"))
    ):
        case = select(rows, way=way, gradient=gradient)
        heights = [fraction(row, row["time"], results["peak"]) for row in case]
        axes.bar(
            [g + 0.27 * (i - 1) for g in range(len(groups))],
            heights,
            0.25,
            label=way if way == "forward" else f"{way}, {gradient}",
        )
    axes.set_xticks(
        range(len(groups)), [f"{label}\n{SHORT[kind]}" for label, kind in groups], fontsize=8
    )
    axes.axhline(1, color="black", linewidth=1)
    axes.set_ylabel("fraction of the limit, one thread")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def sizes(results, path):
    figure, grid = plt.subplots(2, 3, figsize=(12, 6.5))
    for axes, axis in zip(grid.flat, "BNKD"):
        for backward, style in ((False, "o-"), (True, "s--")):
            rows = select(results.get("sweep", []), axis=axis, backward=backward)
            for name in dict.fromkeys(n for row in rows for n in row["time"]):
                points = [
                    (r["value"], 1e3 * r["time"][name]["median"]) for r in rows if name in r["time"]
                ]
                axes.plot(
                    *zip(*points),
                    style,
                    ms=3,
                    lw=1,
                    color={OURS: "C0", RECOMPUTE: "C2"}.get(name, "C3"),
                    label=f"{name}, {'forward + backward' if backward else 'forward'}",
                )
        _logarithmic(axes, axis, "ms")
    _threads(results, grid.flat[4])
    _memory(results, grid.flat[5])
    _legend(grid.flat[1])
    figure.tight_layout()
    _save(figure, path)


def _threads(results, axes):
    rows = [row for row in results.get("threads sweep", []) if row["kind"] == "SlotMixture"]
    for label, mode in dict.fromkeys((row["shape"], row["mode"]) for row in rows):
        case = select(rows, shape=label, mode=mode)
        points = [(row["threads"], 1e3 * row["time"]["median"]) for row in case]
        axes.plot(
            *zip(*points),
            "o-" if mode == "forward" else "s--",
            ms=3,
            lw=1,
            label=f"{label}, {mode}",
        )
    _logarithmic(axes, "threads", "ms")
    _legend(axes)


def _memory(results, axes):
    for name in dict.fromkeys(row["name"] for row in results.get("memory", [])):
        case = select(results["memory"], name=name)
        axes.plot(
            [row["N"] for row in case],
            [max(row["bytes"], 1) / 2**20 for row in case],
            "o-",
            ms=3,
            lw=1,
            label=name,
        )
    _logarithmic(axes, "N", "MiB at most, forward + backward")
    _legend(axes)


def _legend(axes):
    """Above the axes, where it covers no line."""
    axes.legend(fontsize=6, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)


def _logarithmic(axes, x, y):
    axes.set_xscale("log", base=2 if x != "N" else 10)
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)


def draw(results, folder):
    """PNG files in `folder`, of the sections that there are."""
    if results.get("peers"):
        ratios(results, folder / "benchmark-ratios.png")
    if results.get("limit") and results["peak"]:
        fractions(results, folder / "benchmark-limit.png")
    if any(results.get(key) for key in ("sweep", "threads sweep", "memory")):
        sizes(results, folder / "benchmark-sizes.png")
