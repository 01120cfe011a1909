"""Training and evaluation of set prediction."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from .. import metrics
from ..diagnostics import watch
from ..modules import SlotEncoder, build
from ..pictures import open_pictures as open_with
from ..pictures import eval_seeds, seed_of, to_input
from ..training import Loop, rank_and_world
from .matching import set_loss
from .model import SetPredictor

FIELDS = ("image", "target")
open_pictures = partial(open_with, fields=FIELDS)


def make_model(config):
    if config.model == "reference":
        from .reference import ReleasedPredictor

        return ReleasedPredictor()
    return SetPredictor(config)


build_model = partial(build, make_model)


def train(config, out, device, model=None):
    """Train as configured into the folder `out`, another model than the configuration's if given; returns it."""
    rank, _ = rank_and_world()
    model = build_model(config, device) if model is None else model
    pictures = open_pictures(config, "train", quiet=rank > 0)
    check = open_pictures(config, "val", count=100, quiet=rank > 0)

    def loss(trained, step, indices):
        images, targets = pictures.train_batch(config.seed, indices, config.batch_size)
        prediction = trained(to_input(images, device), [seed_of(config.seed, i) for i in indices])
        return set_loss(prediction, torch.from_numpy(targets).to(device), config.empty_rows)

    def progress(model, step):
        values = average_precision(model, check, config, draws=1)[0]
        diagnosis = {"slots": watch(model, check, config)} if isinstance(model, SlotEncoder) else {}
        return {"ap_inf": 100 * values[float("inf")], "ap_0.5": 100 * values[0.5], **diagnosis}

    Loop(model, config, out, loss, progress).run()
    return model


@torch.no_grad()
def predict(model, pictures, config, draw=0, batch_size=50):
    """Predictions (n, K, 19) of all pictures from the draw-th initial slots, and the targets, as float32 arrays."""
    model.eval()
    device = next(model.parameters()).device
    parts = []
    for indices, (images, targets) in pictures.in_batches(batch_size):
        found = model(
            to_input(images, device), eval_seeds(indices, draw), num_iters=config.eval_iters
        )
        parts.append((found.float().cpu().numpy(), targets))
    model.train()
    return tuple(map(np.concatenate, zip(*parts)))


def average_precision(model, pictures, config, draws):
    """AP by threshold, for each of several draws of the initial slots."""
    return [
        metrics.average_precision(*predict(model, pictures, config, draw)) for draw in range(draws)
    ]
