"""Training and evaluation of SLATE."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .. import metrics
from ..metrics.inception import inception_features
from ..object_discovery.train import foreground_ari, number_of_objects
from ..set_prediction.train import number_listed
from ..shared.diagnostics import watch
from ..shared.modules import autocast, build, evaluation, load_weights
from ..shared.pictures import eval_seeds, open_pictures, seed_of, to_input
from ..shared.schedules import RATES, UNKNOWN, halved
from ..shared.training import fit, slots_of
from .dvae import PATCH, Centres, squared_error, temperature_at
from .model import Slate

# added to the seed, for the dVAE's noise: a sequence apart from that of the initial slots
NOISE = 2_000_000
HOT, COLD = 1.0, 0.1
OF_CENTRES = 1000  # pictures
OPTIONAL = ("mask",)


def build_model(config, device="cpu"):
    model = build(Slate, config, device)
    if config.dvae and not config.weights:
        try:
            load_weights(model.dvae, config.dvae_file())
        except (OSError, ValueError) as error:
            raise ValueError(f"dvae: {error}") from error
    return model


def dvae_rate(config, step):
    """Learning rate of the dVAE, without warm-up."""
    return config.dvae_lr * halved(step, config.dvae_half_life)


def steps_alone(config):
    """Steps in which the dVAE learns alone."""
    return int(config.dvae_alone * (config.steps or UNKNOWN))


def slots_rate(config, step):
    """Learning rate of slots and transformer: `config.schedule` over their own steps."""
    alone = steps_alone(config)
    rest = replace(config, steps=(config.steps or UNKNOWN) - alone)
    return RATES[config.schedule](rest, step - alone) if step >= alone else 0.0


def train(config, out, device):
    """Train as configured into the folder `out`; returns the model."""

    def loss(trained, step, indices, images, seeds):
        torch.manual_seed(seed_of(config.seed, indices.start))  # of the dropout alone
        noise = [seed_of(config.seed + NOISE, i) for i in indices]
        temperature = temperature_at(step, HOT, COLD, config.cooldown)
        options = {"alone": step < steps_alone(config), "num_slots": slots_of(config, step)}
        return sum(trained(images, noise, seeds, temperature, **options))

    def progress(model, pictures, step):
        if step <= steps_alone(config):
            return figures(model, pictures, config, alone=True)
        return {**figures(model, pictures, config), "slots": watch(model, pictures, config)}

    model = build_model(config, device)
    resumed = (Path(out) / "checkpoint.pt").exists()
    if isinstance(model.dvae.encoder, Centres) and not (config.weights or resumed):
        start_at_centres(model, config)
    # apart, clipped apart: else the slots' gradients would change the dVAE's steps
    groups = [(model.learners(), slots_rate)]
    if not model.fixed:
        groups.append(([p for p in model.dvae.parameters() if p.requires_grad], dvae_rate))
    return fit(model, config, out, loss, progress, optional=OPTIONAL, groups=groups)


def start_at_centres(model, config):
    """Those of the first pictures, or of a trained dVAE."""
    pictures = open_pictures(config, "train", OF_CENTRES)
    (images,) = pictures.batch(range(len(pictures)))
    images, encoder = to_input(images, "cpu"), model.dvae.encoder
    if not config.dvae:
        encoder.find(images, config.seed)
    model.writer.start_at(encoder.unlike_ground(images))


def figures(
    model,
    pictures,
    config,
    draw=0,
    alone=False,
    generate=False,
    inception=None,
    counter=None,
    batch_size=25,
) -> dict[str, float]:
    """Means over pictures, from the draw-th initial slots.

    dvae_mse : squared error of the dVAE's picture of its likeliest tokens, in [0, 1], summed over
        pixels and channels.
    cross_entropy : of these tokens given their slots, in nats, summed over a picture's tokens; not
        where the dVAE is `alone`, as what follows.
    fg_ari : adjusted Rand index of the objects' pixels, each of the slot that attends most to its
        token; where the data have masks.
    mse : squared error, summed likewise, of the picture generated from the slots; where `generate`,
        as all that follow.
    frechet_dvae : Fréchet distance of generated to input pictures in the dVAE's features, no FID.
    fid : where `inception` is the file of the Inception network; see `metrics.inception`.
    count_accuracy : share of the generated pictures in which `counter`, a set predictor, lists as
        many objects as the masks of their inputs have; where there is one.
    """
    values, shown, written = defaultdict(list), [], []
    with evaluation(model) as device:
        for indices, (images, *masks) in pictures.in_batches(batch_size):
            inputs = to_input(images, device)
            with autocast(model.precision, device):
                tokens = model.dvae.tokens(inputs)
                values["dvae_mse"].append(squared_error(model.dvae.picture(tokens), inputs))
                if alone:
                    continue
                slots, attention = model.read(tokens, eval_seeds(indices, draw), config.eval_iters)
                values["cross_entropy"].append(model.cross_entropy(tokens, slots))
            for true in masks:
                values["fg_ari"].append(agreement(true, attention))
            if generate:
                drawn = model.generate(slots)
                values["mse"].append(squared_error(drawn, inputs))
                for true in masks if counter else ():
                    values["count_accuracy"].append(counted(counter, drawn, true))
                shown.append(images)
                written.append(to_pixels(drawn))
        result = {
            name: float(torch.cat(parts).double().nanmean()) for name, parts in values.items()
        }
        if generate:
            both = np.concatenate(shown), np.concatenate(written)
            result["frechet_dvae"] = frechet(partial(summaries, model), *both)
            if inception:
                features = partial(inception_features, inception, device=device)
                result["fid"] = frechet(features, *both)
    return result


def agreement(true, attention):
    """FG-ARI (B,) of masks (B, S, S) and the slots of attention (B, N, K); NaN without objects."""
    side = math.isqrt(attention.shape[1])
    slot = attention.argmax(2).unflatten(1, (side, side))
    slot = slot.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2).flatten(1).cpu().numpy()
    return torch.from_numpy(foreground_ari(true.reshape(slot.shape), slot))


def counted(counter, images, masks):
    """(B,): whether a set predictor lists as many objects of pictures (B, 3, S, S) as masks do."""
    found = counter(images, eval_seeds(range(len(images))), counter.config.eval_iters)
    listed = number_listed(found.float().cpu().numpy(), counter.config)
    return torch.from_numpy(listed == number_of_objects(masks))


def frechet(features, first, second):
    """Fréchet distance of two sets of pictures (n, S, S, 3) uint8 by their features."""
    first, second = (metrics.feature_statistics(features(x)) for x in (first, second))
    return metrics.frechet_distance(*first, *second)


def summaries(model, images, batch_size=100):
    device = next(model.parameters()).device
    batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    parts = [model.dvae.summary(to_input(batch, device)) for batch in batches]
    return torch.cat(parts).cpu().numpy()


def to_pixels(images):
    """(B, 3, S, S) in [-1, 1] to (B, S, S, 3) uint8."""
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
