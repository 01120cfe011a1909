"""Command line of SLATE; `python -m examples.slate --help`."""

from __future__ import annotations

import sys

import numpy as np

from ..command import Pipeline, main, over
from ..diagnostics import describe, watch
from ..metrics.inception import inception_file
from .config import Config
from .plots import curves, samples
from .train import FIELDS, build_model, figures, train


def evaluate(model, pictures, config, options):
    draws = [
        figures(model, pictures, config, draw, generate=True, inception=options.inception)
        for draw in range(options.draws)
    ]
    mean, deviation = over(draws, np.mean), over(draws, np.std)
    for name, value in mean.items():
        print(f"{name:14s}{value:10.3f} ± {deviation[name]:.3f}")
    print(describe(watch(model, pictures, config)))
    return (
        {**mean, "draws_std": deviation},
        {
            "draws": options.draws,
            "mse": "generated pictures, in [0, 1], summed over pixels and channels, mean over pictures",
            "cross_entropy": "nats, of the dVAE's likeliest tokens, summed over a picture's tokens, mean over pictures",
        },
    )


def sample(model, pictures, config, options):
    if options.out is None:
        raise ValueError("sample needs --out, the folder for its pictures")
    samples(model, pictures, config, options.out)
    print(f"pictures: {options.out / 'samples.png'}, {options.out / 'mixed.png'}")
    return {}, {}


def add_options(parser):
    parser.add_argument(
        "--inception",
        type=inception_file,
        help="TorchScript file of the Inception network of 2015 (inception-2015-12-05.pt), for the FID",
    )


PIPELINE = Pipeline(
    "slate",
    "Learn to take pictures apart into slots and to write them again, token by token. Without a command: train the tiny preset on "
    "built-in scenes (at most 20 minutes on two cores), then evaluate; sample draws what is written from the slots.",
    Config,
    FIELDS,
    build_model,
    train,
    curves,
    {"eval": evaluate, "sample": sample},
    add_options,
    least=2,
)  # for a distance of distributions, and to mix slots

if __name__ == "__main__":
    sys.exit(main(PIPELINE))
