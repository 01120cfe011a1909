"""Training and evaluation of object discovery."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import numpy as np
import torch.nn.functional as F

from .. import metrics
from ..shared.diagnostics import watch
from ..shared.modules import build, evaluation
from ..shared.pictures import eval_seeds, to_input
from ..shared.training import fit, slots_of
from .model import ObjectDiscovery

OPTIONAL = ("mask",)
build_model = partial(build, ObjectDiscovery)


def train(config, out, device):
    """Train as configured into the folder `out`; returns the model."""

    def loss(trained, step, indices, images, seeds):
        scene = trained(images, seeds, iterations(config, step), slots_of(config, step))
        return F.mse_loss(scene.reconstruction, images)

    def progress(model, pictures, step):
        values = figures(model, pictures, config)
        shown = {name: values[name] for name in ("mse", "fg_ari") if name in values}
        return {**shown, "slots": watch(model, pictures, config)}

    return fit(build_model(config, device), config, out, loss, progress, optional=OPTIONAL)


def iterations(config, step):
    """Of the slot module in a step of training, the same in all processes."""
    drawn = np.random.default_rng([config.seed, step])
    return int(drawn.integers(config.least_iters, config.train_iters + 1))


def figures(model, pictures, config, draw=0, batch_size=25) -> dict[str, float]:
    """Means over all pictures, from the draw-th initial slots.

    mse : of values in [-1, 1]. The others are there with true masks, and a pixel is of the slot of
        its largest mask.
    ari, fg_ari : of all pixels, of the objects' alone.
    mbo, miou : means over true objects, of the best mask for each and of the one matched to it.
    """
    values = defaultdict(list)
    with evaluation(model) as device:
        for indices, (images, *true) in pictures.in_batches(batch_size):
            images = to_input(images, device)
            scene = model(images, eval_seeds(indices, draw), config.eval_iters)
            error = (scene.reconstruction - images).square().mean((1, 2, 3))
            values["mse"].append(error.cpu().numpy())
            found = scene.masks.argmax(1).flatten(1).cpu().numpy()
            for labels in true:
                for name, value in agreement(labels.reshape(found.shape), found).items():
                    values[name].append(value)
    # NaN: a picture without objects
    return {name: float(np.nanmean(np.concatenate(parts))) for name, parts in values.items()}


def agreement(true, predicted):
    """Of labels (n, pixels), 0 the background; all but ARI are NaN where there is no object."""
    objects = np.where(true.any(1), 1.0, np.nan)
    return {
        "ari": metrics.adjusted_rand_index(true, predicted),
        "fg_ari": objects * metrics.adjusted_rand_index(true, predicted, foreground=True),
        "mbo": metrics.mean_best_overlap(true, predicted),
        "miou": metrics.mean_iou(true, predicted),
    }
