"""Training and evaluation of object discovery."""

from __future__ import annotations

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

FIELDS = ("image", "mask")
build_model = partial(build, ObjectDiscovery)


def train(config, out, device):
    """Train as configured into the folder `out`; returns the model."""
    rank, _ = rank_and_world()
    model = build_model(config, device)
    pictures = open_pictures(config, "train", quiet=rank > 0)
    check = open_pictures(config, "val", count=100, quiet=rank > 0, fields=FIELDS)

    def loss(trained, step, indices):
        (images,) = pictures.train_batch(config.seed, indices)
        images = to_input(images, device)
        return F.mse_loss(trained(images, [seed_of(config.seed, i) for i in indices]).reconstruction, images)

    def progress(model):
        values = figures(model, check, config)
        return {"mse": values["mse"], "fg_ari": values["fg_ari"], "slots": watch(model, check, config)}

    Loop(model, config, out, loss, progress).run()
    return model


@torch.no_grad()
def figures(model, pictures, config, draw=0, batch_size=25) -> dict[str, float]:
    """Mean over all pictures, from the draw-th initial slots: mse of values in [-1, 1], and how the masks agree.

    A pixel belongs to the slot of the largest mask. ARI is of all pixels, FG-ARI of the objects' alone;
    mBO and mIoU are means over true objects: of the best mask for each, and of the one matched to it.
    """
    model.eval()
    device = next(model.parameters()).device
    values = {name: [] for name in ("mse", "ari", "fg_ari", "mbo", "miou")}
    for indices, (images, true) in pictures.in_batches(batch_size):
        images = to_input(images, device)
        scene = model(images, eval_seeds(indices, draw), config.eval_iters)
        predicted = scene.masks.argmax(1).flatten(1).cpu().numpy()
        true = true.reshape(len(true), -1)
        values["mse"].append((scene.reconstruction - images).square().mean((1, 2, 3)).cpu().numpy())
        values["ari"].append(metrics.adjusted_rand_index(true, predicted))
        values["fg_ari"].append(metrics.adjusted_rand_index(true, predicted, foreground=True))
        values["mbo"].append(metrics.mean_best_overlap(true, predicted))
        values["miou"].append(metrics.mean_iou(true, predicted))
    model.train()
    return {name: float(np.nanmean(np.concatenate(parts))) for name, parts in values.items()}  # NaN: a picture without objects
