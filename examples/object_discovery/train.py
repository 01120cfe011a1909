"""Training and evaluation of object discovery."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from .. import metrics
from ..diagnostics import watch
from ..modules import build
from ..pictures import eval_seeds, open_pictures, seed_of, to_input
from ..training import Loop, rank_and_world
from .model import ObjectDiscovery

FIELDS, OPTIONAL = ("image",), ("mask",)
build_model = partial(build, ObjectDiscovery)


def train(config, out, device):
    """Train as configured into the folder `out`; returns the model."""
    rank, _ = rank_and_world()
    model = build_model(config, device)
    pictures = open_pictures(config, "train", quiet=rank > 0)
    check = open_pictures(
        config, "val", count=100, quiet=rank > 0, fields=FIELDS, optional=OPTIONAL
    )

    def loss(trained, step, indices):
        (images,) = pictures.train_batch(config.seed, indices, config.batch_size)
        images = to_input(images, device)
        scene = trained(
            images, [seed_of(config.seed, i) for i in indices], iterations(config, step)
        )
        return F.mse_loss(scene.reconstruction, images)

    def progress(model, step):
        values = figures(model, check, config)
        return {
            **{name: values[name] for name in ("mse", "fg_ari") if name in values},
            "slots": watch(model, check, config),
        }

    Loop(model, config, out, loss, progress).run()
    return model


def iterations(config, step):
    """Of the slot module in a step of training, the same in all processes."""
    return int(
        np.random.default_rng([config.seed, step]).integers(
            config.least_iters, config.train_iters + 1
        )
    )


@torch.no_grad()
def figures(model, pictures, config, draw=0, batch_size=25) -> dict[str, float]:
    """Mean over all pictures, from the draw-th initial slots: mse of values in [-1, 1], and how the masks agree.

    A pixel belongs to the slot of the largest mask. ARI is of all pixels, FG-ARI of the objects' alone;
    mBO and mIoU are means over true objects: of the best mask for each, and of the one matched to it. Without true masks there
    is the error alone.
    """
    model.eval()
    device = next(model.parameters()).device
    values = defaultdict(list)
    for indices, (images, *true) in pictures.in_batches(batch_size):
        images = to_input(images, device)
        scene = model(images, eval_seeds(indices, draw), config.eval_iters)
        values["mse"].append((scene.reconstruction - images).square().mean((1, 2, 3)).cpu().numpy())
        if true:
            for name, value in agreement(
                true[0].reshape(len(images), -1), scene.masks.argmax(1).flatten(1).cpu().numpy()
            ).items():
                values[name].append(value)
    model.train()
    return {
        name: float(np.nanmean(np.concatenate(parts))) for name, parts in values.items()
    }  # NaN: a picture without objects


def agreement(true, predicted):
    """Of labels (n, pixels), 0 the background; all but ARI are NaN where there is no object."""
    objects = np.where(true.any(1), 1.0, np.nan)
    return {
        "ari": metrics.adjusted_rand_index(true, predicted),
        "fg_ari": objects * metrics.adjusted_rand_index(true, predicted, foreground=True),
        "mbo": metrics.mean_best_overlap(true, predicted),
        "miou": metrics.mean_iou(true, predicted),
    }
