"""Clustering points in a plane with smm_py.sklearn: `python -m examples.clustering --out FILE.png`.

Soft K-Means and a Gaussian mixture find the same four groups, and BIC chooses their number.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np

from smm_py.sklearn import GaussianMixture, KMeans

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import Ellipse  # noqa: E402

CENTRES = np.array([[-4.0, 0.5], [0.0, 2.5], [0.5, -2.0], [4.5, 0.5]])
SPREADS = np.array([[0.5, 1.6], [1.8, 0.4], [0.7, 0.7], [0.4, 1.2]])
COUNTS = (250, 250, 150, 150)


def points(seed=4):
    """(N, 2) points around four centres, and the group of each."""
    group = np.repeat(np.arange(4), COUNTS)
    noise = np.random.default_rng(seed).normal(size=(len(group), 2))
    return CENTRES[group] + SPREADS[group] * noise, group


def right(labels, group):
    """Share of the points whose cluster is mostly of their own group."""
    own = [np.bincount(group[labels == k], minlength=4).max() for k in np.unique(labels)]
    return sum(own) / len(group)


def draw_clusters(axis, X, model, title):
    """Points in the mixed colours of their clusters; ellipses at one and two deviations."""
    colors = np.array(plt.get_cmap("tab10").colors[: len(model.means_)])
    axis.scatter(*X.T, s=5, lw=0, c=(model.predict_proba(X) @ colors).clip(0, 1))
    for mean, variance, color in zip(model.means_, model.covariances_, colors):
        for size in (1, 2):
            width, height = 2 * size * np.sqrt(variance)
            axis.add_patch(Ellipse(mean, width, height, fc="none", ec=color, lw=1.8 / size))
    axis.set(title=title, xticks=[], yticks=[], aspect="equal")


def main():
    parser = argparse.ArgumentParser(
        prog="python -m examples.clustering",
        description=__doc__.split("\n\n")[1],
        epilog="example: python -m examples.clustering --out shown.png",
    )
    parser.add_argument("--out", type=Path, default=Path("clustering.png"), help="the picture")
    out = parser.parse_args().out
    X, group = points()
    numbers = range(1, 9)
    models = [
        GaussianMixture(k, n_init=5, tol=1e-5, max_iter=500, random_state=0).fit(X) for k in numbers
    ]
    bic = [model.bic(X) for model in models]
    best = models[int(np.argmin(bic))]
    k_means = KMeans(best.n_components, n_init=5, random_state=0).fit(X)

    figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
    for axis, model in zip(axes, (k_means, best)):
        title = f"{type(model).__name__}: {right(model.predict(X), group):.1%} right"
        draw_clusters(axis, X, model, title)
        print(title)
    axes[2].plot(numbers, bic, "o-")
    axes[2].plot(best.n_components, min(bic), "o", ms=12, mfc="none", c="C3")
    axes[2].set(xlabel="number of Gaussians", ylabel="BIC", title="the lowest BIC is the choice")
    figure.savefig(out, dpi=100)
    print(f"BIC chooses {best.n_components} Gaussians; the picture is {out}")


if __name__ == "__main__":
    main()
