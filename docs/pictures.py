"""Draw the pictures of docs/slot-mixture.md: `python docs/pictures.py [FOLDER]`."""

import sys
from pathlib import Path

import matplotlib
import numpy as np

import smm_py

ROOT = Path(__file__).resolve().parents[1]
COLORS = np.array([[0.12, 0.47, 0.71], [0.85, 0.37, 0.01], [0.11, 0.62, 0.47]])


def points():
    """A wide cluster between two small ones, (400, 2)."""
    rng = np.random.default_rng(3)
    wide = rng.normal(size=(240, 2)) * [1.1, 1.1]
    left = rng.normal(size=(80, 2)) * [0.2, 0.5] + [-3.2, 0.3]
    right = rng.normal(size=(80, 2)) * [0.5, 0.15] + [2.6, -1.6]
    return np.concatenate([wide, left, right])


def scatter(axis, x, found, title):
    """Points in the colours of their responsibilities; of mixtures, ellipses at two deviations."""
    from matplotlib.patches import Ellipse

    axis.scatter(*x.T, s=4, c=(found.attention @ COLORS).clip(0, 1))
    means = found.slots if found.mean is None else found.mean
    axis.scatter(*means.T, s=60, c=COLORS, marker="X", edgecolor="black", zorder=3)
    if found.variance is not None:
        for mean, variance, color in zip(found.mean, found.variance, COLORS):
            width, height = 4 * np.sqrt(variance)
            axis.add_patch(Ellipse(mean, width, height, fill=False, color=color, lw=1.5))
    axis.set(xlim=(-4.6, 4.6), ylim=(-3.6, 3.6), aspect="equal", xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)


def em(plt):
    """EM, step by step."""
    x = points()
    mixture = smm_py.GaussianMixture(dim=2, num_slots=3)
    # three points of the wide cluster: a poor start, so that there is something to see
    spread = np.log(x.std(0)).reshape(1, 2).repeat(3, 0)
    start = {"indices": np.array([10, 30, 60]), "log_std": spread}
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.1), layout="constrained")
    for steps, axis in zip((1, 3, 8, 40), axes):
        found = mixture(x, init=start, num_iters=steps, attention=True)
        mean = float(found.log_likelihood) / len(x)
        plural = "s" * (steps > 1)
        scatter(axis, x, found, f"{steps} step{plural}, log-likelihood {mean:.2f}")
    return figure


def kmeans_or_mixture(plt):
    """What a variance is good for."""
    x = points()
    start = np.array([[-3.2, 0.3], [0, 0], [2.6, -1.6]])
    kmeans = smm_py.KMeans(dim=2, num_slots=3, num_iters=40, scale=4.0)
    mixture = smm_py.GaussianMixture(dim=2, num_slots=3, num_iters=40)
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.6), layout="constrained")
    found = kmeans(x, init={"slots": start}, attention=True)
    scatter(axes[0], x, found, "K-Means: a centre per slot")
    init = {"mean": start, "log_std": np.zeros((3, 2))}
    found = mixture(x, init=init, attention=True)
    scatter(axes[1], x, found, "mixture: a centre and a spread per slot")
    return figure


def slots_of_a_scene(plt):
    """The pixels of a drawn scene, clustered by colour and place."""
    sys.path.insert(0, str(ROOT))
    from examples.data import draw_scene

    def thing(color, shape, x, y):
        return {
            "3d_coords": (x, y, 0.7),
            "size": "large",
            "material": "rubber",
            "shape": shape,
            "color": color,
            "rotation": 30,
        }

    size = 64
    things = [("red", "sphere", -1.8, 1.2), ("cyan", "cylinder", 0.4, 0.2)]
    things += [("yellow", "cube", 2.0, -1.4), ("green", "sphere", -1.4, -1.7)]
    image, _ = draw_scene([thing(*t) for t in things], size)
    y, x = np.mgrid[:size, :size] / size - 0.5
    features = np.concatenate([image / 255 * 2 - 1, np.stack([x, y], -1) * 1.5], -1).reshape(-1, 5)
    # a drawing has surfaces without any spread, which are no Gaussians
    features = features + np.random.default_rng(0).normal(scale=0.05, size=features.shape)
    mixture = smm_py.GaussianMixture(dim=5, num_slots=7, num_iters=40)
    found = max(
        (mixture(features, seed=seed, attention=True) for seed in range(20)),
        key=lambda found: found.log_likelihood,
    )
    figure, axes = plt.subplots(1, 8, figsize=(9, 1.4), layout="constrained")
    axes[0].imshow(image)
    axes[0].set_title("picture", fontsize=8)
    for k, axis in zip(np.argsort(-found.prior), axes[1:]):
        part = found.attention[:, k].reshape(size, size, 1)
        axis.imshow((image / 255 * part + (1 - part)).clip(0, 1))
        axis.set_title(f"prior {found.prior[k]:.2f}", fontsize=8)
    for axis in axes:
        axis.axis("off")
    return figure


PICTURES = {
    "mixture-em.png": em,
    "mixture-or-kmeans.png": kmeans_or_mixture,
    "mixture-scene.png": slots_of_a_scene,
}


def main(folder):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for name, draw in PICTURES.items():
        draw(plt).savefig(folder / name, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
