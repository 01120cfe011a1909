"""Training and evaluation of set prediction."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from .. import metrics
from ..data.properties import REAL
from ..shared.diagnostics import watch
from ..shared.modules import SlotEncoder, build, evaluation
from ..shared.pictures import eval_seeds, to_input
from ..shared.schedules import UNKNOWN
from ..shared.training import fit, slots_of
from .listing import by_certainty, without_repeats
from .matching import set_loss
from .model import SetPredictor, pairwise_huber, pairwise_likelihood

FIELDS = ("image", "target")
FALL = 0.2, 0.6  # the share of the steps in which the scale of coordinates falls


def make_model(config):
    if config.model == "reference":
        from .reference import ReleasedPredictor

        return ReleasedPredictor()
    return SetPredictor(config)


build_model = partial(build, make_model)


def train(config, out, device, model=None):
    """Train as configured into the folder `out`; returns the model.

    model : trained in place of the configuration's own.
    """

    def loss(trained, step, indices, images, seeds, targets):
        targets = torch.from_numpy(targets).to(device)
        found = trained(images, seeds, num_slots=slots_of(config, step))
        if config.loss == "huber":
            return set_loss(found, targets, partial(pairwise_huber, empty_rows=config.empty_rows))
        return set_loss(found, targets, partial(pairwise_likelihood, scale=scale(config, step)))

    def progress(model, pictures, step):
        values = average_precision(model, pictures, config, draws=1)[0]
        shown = {"ap_inf": 100 * values[float("inf")], "ap_0.5": 100 * values[0.5]}
        if isinstance(model, SlotEncoder):
            shown["slots"] = watch(model, pictures, config)
        return shown

    model = build_model(config, device) if model is None else model
    return fit(model, config, out, loss, progress, FIELDS)


def scale(config, step):
    """Of the coordinates in a step of training: it falls from `widest` to `narrowest`.

    Coordinates count little until slots have found what tells objects apart, and much in the end.
    """
    first, last = (share * (config.steps or UNKNOWN) for share in FALL)
    done = min(1.0, max(0.0, (step - first) / max(1, last - first)))
    return config.widest * (config.narrowest / config.widest) ** done


def predict(model, pictures, config, draw=0, batch_size=50):
    """Predictions (n, K, 19) of all pictures from the draw-th initial slots, and the targets.

    Both are float32 arrays.
    """
    parts = []
    with evaluation(model) as device:
        for indices, (images, targets) in pictures.in_batches(batch_size):
            found = model(to_input(images, device), eval_seeds(indices, draw), config.eval_iters)
            parts.append((found.float().cpu().numpy(), targets))
    return tuple(map(np.concatenate, zip(*parts)))


def average_precision(model, pictures, config, draws):
    """AP by threshold, for each of several draws of the initial slots."""
    return [precision(*predict(model, pictures, config, draw), config) for draw in range(draws)]


def precision(found, targets, config):
    """AP by threshold, of predictions; those of `predict`."""
    if config.apart:  # else as in the paper
        found = by_certainty(without_repeats(found, config.least_distance))
    return metrics.average_precision(found, targets)


def number_listed(found, config):
    """Of the objects in predictions (n, K, 19): those with a presence above one half, once each."""
    return (without_repeats(found, config.least_distance)[..., REAL] > 0.5).sum(1)


def number_true(targets):
    """(n,): how many objects targets (n, M, 19) have."""
    return (targets[..., REAL] > 0.5).sum(1)


def count_figures(found, targets, config):
    """Of the number of objects that are listed.

    count_accuracy : share of pictures where it is right. count_error : mean of the difference.
    """
    wrong = np.abs(number_listed(found, config) - number_true(targets))
    return {"count_accuracy": float((wrong == 0).mean()), "count_error": float(wrong.mean())}
