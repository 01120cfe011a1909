"""Training and evaluation of object discovery."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from .. import metrics
from ..shared.diagnostics import watch
from ..shared.modules import build, evaluation
from ..shared.pictures import eval_seeds, to_input
from ..shared.schedules import UNKNOWN
from ..shared.training import fit, slots_of
from .model import ObjectDiscovery, count_objects, slot_of_each_pixel

OPTIONAL = ("mask",)
build_model = partial(build, ObjectDiscovery)


def train(config, out, device):
    """Train as configured into the folder `out`; returns the model."""

    def loss(trained, step, indices, images, seeds):
        scene = trained(images, seeds, iterations(config, step), slots_of(config, step))
        error = F.mse_loss(scene.reconstruction, images)
        if config.label_cost:
            shares = scene.masks.mean((2, 3, 4))
            error = error + label_cost(config, step) * torch.special.entr(shares).sum(1).mean()
        return error

    def progress(model, pictures, step):
        values = figures(model, pictures, config)
        shown = {name: values[name] for name in ("mse", "fg_ari") if name in values}
        return {**shown, "slots": watch(model, pictures, config)}

    return fit(build_model(config, device), config, out, loss, progress, optional=OPTIONAL)


def iterations(config, step):
    """Of the slot module in a step of training, the same in all processes."""
    drawn = np.random.default_rng([config.seed, step])
    return int(drawn.integers(config.least_iters, config.train_iters + 1))


def label_cost(config, step):
    """The weight in a step: 0 in the first fifth of the training, whole from the middle on."""
    done = step / (config.steps or UNKNOWN)
    return config.label_cost * min(max((done - 0.2) / 0.3, 0), 1)


def figures(model, pictures, config, draw=0, batch_size=25) -> dict[str, float]:
    """Means over all pictures, from the draw-th initial slots.

    mse : of values in [-1, 1]. The others are there with true masks, and a pixel is of the slot
        that `slot_of_each_pixel` says.
    ari, fg_ari : of all pixels, of the objects' alone.
    mbo, miou : means over true objects, of the best mask for each and of the one matched to it.
    count_accuracy, count_error : share of pictures whose number of objects is right; mean of the
        difference.
    """
    values = defaultdict(list)
    with evaluation(model) as device:
        for indices, (images, *true) in pictures.in_batches(batch_size):
            images = to_input(images, device)
            scene = model(images, eval_seeds(indices, draw), config.eval_iters)
            error = (scene.reconstruction - images).square().mean((1, 2, 3))
            values["mse"].append(error.cpu().numpy())
            found = slot_of_each_pixel(scene, images)
            count, found = count_objects(scene, found).cpu().numpy(), found.flatten(1).cpu().numpy()
            for labels in true:
                labels = labels.reshape(found.shape)
                wrong = count - number_of_objects(labels)
                own = {"count_accuracy": wrong == 0, "count_error": np.abs(wrong)}
                for name, value in {**agreement(labels, found), **own}.items():
                    values[name].append(value)
    # NaN: a picture without objects
    return {name: float(np.nanmean(np.concatenate(parts))) for name, parts in values.items()}


def number_of_objects(labels):
    """That have a pixel of labels (n, pixels)."""
    return np.array([len(np.unique(own[own > 0])) for own in labels])


def foreground_ari(true, predicted):
    """FG-ARI of labels (n, pixels), 0 the background; NaN where there is no object."""
    objects = np.where(true.any(1), 1.0, np.nan)
    return objects * metrics.adjusted_rand_index(true, predicted, foreground=True)


def agreement(true, predicted):
    """Of labels (n, pixels), 0 the background; all but ARI are NaN where there is no object."""
    return {
        "ari": metrics.adjusted_rand_index(true, predicted),
        "fg_ari": foreground_ari(true, predicted),
        "mbo": metrics.mean_best_overlap(true, predicted),
        "miou": metrics.mean_iou(true, predicted),
    }
