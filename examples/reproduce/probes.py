"""What trained models are asked beyond their pipeline's figures, for the ablations.

Each function takes a run's folder and gives figures by name, or dicts of them.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import torch

from .. import load
from ..data.properties import REAL
from ..set_prediction.model import merged
from ..set_prediction.train import FIELDS, count_figures, number_listed, precision
from ..shared.diagnostics import watch
from ..shared.modules import seen_by
from ..shared.pictures import open_pictures, to_input

PICTURES = 300
ITERATIONS = range(1, 11)
MANY = {"min_objects": 1, "max_objects": 10, "slots": 16}
FULL = {"min_objects": 7, "max_objects": 10, "slots": 14}


def listed(model, config):
    """Predictions (n, K, 19) of new scenes, attention (n, N, K), targets."""
    pictures = open_pictures(config, "val", PICTURES, FIELDS)
    options = {"return_attention": True, "num_slots": config.slots}
    _, (targets,), (found, attention) = seen_by(model, pictures, config, **options)
    return found.float().cpu(), attention.float().cpu(), targets


def points(found, targets, config, **names):
    """AP in %: a figure for each name, at its threshold."""
    values = precision(np.asarray(found), targets, config)
    return {name: 100 * values[threshold] for name, threshold in names.items()}


def of_set_prediction(run):
    """Of the run in a folder: counts and AP of other numbers of objects, iterations, dropped slots.

    used, duplicates : as `diagnose` says. repeated : objects that are listed again, of a picture.
    far_iterations, near_iterations : AP∞ and AP0.5 by number of iterations. far_dropped,
    near_dropped : by number of slots that are left out, those of least mass first. far_random :
        slots drawn at random instead. many, many_merged, many_once : 1 to 10 objects with 16 slots,
        of all slots, merged by overlap, without repeats. full, full_merged, full_once : 7 to 10
        objects with 14 slots.
    """
    model = load(run)
    config = model.config
    pictures = open_pictures(config, "val", PICTURES, FIELDS)
    seen = watch(model, pictures, config, PICTURES)
    found, attention, targets = listed(model, config)
    all_listed = (found[..., REAL] > 0.5).sum(1).numpy()
    once = number_listed(found.numpy(), config)
    figures = {
        "used": seen["used"],
        "duplicates": seen["duplicates"],
        "repeated": float((all_listed - once).mean()),
    }
    ap = {"far": inf, "near": 0.5}
    by_iterations = {}
    for t in ITERATIONS:
        own = replace(config, eval_iters=t)
        parts = listed(model, own)
        by_iterations[t] = points(parts[0], parts[2], own, **ap)
    figures |= by_number(by_iterations, "iterations")
    for name, order in orders(attention).items():
        left = {}
        for count in range(config.slots):
            rows = order[:, count:, None].expand(-1, -1, found.shape[2])
            left[count] = points(found.gather(1, rows), targets, config, **ap)
        figures |= by_number(left, name)
    for name, changes in (("many", MANY), ("full", FULL)):
        own = replace(config, **changes)
        found, attention, targets = listed(model, own)
        every = replace(own, apart=0.0)
        for kind, values, how in (
            (name, found, every),
            (f"{name}_merged", merged(found, attention), every),
            (f"{name}_once", found, own),
        ):
            counts = count_figures(np.asarray(values), targets, how)
            figures[kind] = {**points(values, targets, how, **ap), **counts}
    return figures


def orders(attention):
    """Orders (n, K) in which slots are left out: least mass first, and at random."""
    mass = attention.sum(1)
    drawn = torch.rand(mass.shape, generator=torch.Generator().manual_seed(0))
    return {"dropped": mass.argsort(1), "random": drawn.argsort(1)}


def by_number(values, what):
    """{number: {name: figure}} to {name_what: {number: figure}}."""
    names = next(iter(values.values()))
    return {f"{name}_{what}": {str(n): v[name] for n, v in values.items()} for name in names}


def of_discovery(run):
    """mse_dropped, mse_random: squared error by number of slots that are left out.

    Those of least mass first, or drawn at random; a background of its own stays. used, duplicates :
    as `diagnose` says.
    """
    model = load(run)
    config = model.config
    model.merge = False
    pictures = open_pictures(config, "val", PICTURES)
    seen = watch(model, pictures, config, PICTURES)
    images, _, scene = seen_by(model, pictures, config)
    truth = to_input(images, "cpu")
    figures = {"used": seen["used"], "duplicates": seen["duplicates"]}
    for name, order in orders(scene.attention).items():
        figures[f"mse_{name}"] = {
            str(count): float((without(scene, order[:, :count]) - truth).square().mean())
            for count in range(scene.masks.shape[1])  # one is left
        }
    return figures


def without(scene, slots):
    """What is drawn (n, 3, S, S) where slots (n, count) are left out; the others share the rest."""
    left = torch.ones(scene.masks.shape[:2]).scatter(1, slots, 0)
    masks = scene.masks * left[:, :, None, None, None]
    return (scene.pictures * masks).sum(1) / masks.sum(1).clamp_min(1e-30)
