"""Command line of SLATE; `python -m examples.slate --help`."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError

from .. import load
from ..metrics.inception import inception_file
from ..set_prediction.model import SetPredictor
from ..shared.command import Pipeline, explain, main, spread
from ..shared.diagnostics import describe, watch
from ..shared.files import first_line
from .config import Config
from .plots import MEASURED, samples
from .show import show
from .train import OPTIONAL, build_model, figures, train

MEANING = (
    "mse: of pictures written from slots; dvae_mse: the best that it could be; cross_entropy: of a "
    "picture's tokens given its slots; frechet_dvae: distance between the distributions of written "
    "and true pictures. Lower is better. fg_ari: whether each object has a slot; count_accuracy: "
    "whether as many are written. Higher is better, at most 1."
)
REACHED = {  # by `tiny`: with a dVAE of its own, and with the one that ships
    "layers": ("mse 56 and cross_entropy 58", 4_500),
    "centres": ("mse 20 and cross_entropy 46", 6_000),
}
PROTOCOL = {
    "mse": "generated pictures, in [0, 1], summed over pixels and channels, mean over pictures",
    "cross_entropy": "nats, of the dVAE's likeliest tokens, summed over a picture's tokens, "
    "mean over pictures",
}


def evaluate(model, pictures, config, options):
    alone = config.dvae_alone == 1
    more = {"alone": alone, "generate": not alone, "inception": options.inception}
    more["counter"] = options.counter
    if options.counter and "mask" not in pictures.fields:
        raise ValueError("counter must be left out, as the data have no masks to count objects of")
    mean, deviation = spread(
        [figures(model, pictures, config, draw, **more) for draw in range(options.draws)]
    )
    for name, value in mean.items():
        print(f"{name:14s}{value:10.3f} ± {deviation[name]:.3f}")
    explain(MEANING, *REACHED[config.dvae_encoder], config, options)
    print(describe(watch(model, pictures, config)))
    if options.out:
        print(f"for pictures: python -m examples.slate sample --out {options.out}")
    return {**mean, "draws_std": deviation}, {"draws": options.draws, **PROTOCOL}


def sample(model, pictures, config, options):
    if options.out is None:
        raise ValueError("sample needs --out, the folder for its pictures")
    config.check_slots("sample")
    samples(model, pictures, config, options.out)
    print(f"pictures: {options.out / 'samples.png'}, {options.out / 'mixed.png'}")
    return {}, {}


def set_predictor(path):
    """The type of a command line's option: a trained set predictor."""
    try:
        model = load(path)
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(first_line(error)) from error
    if not isinstance(model, SetPredictor):
        raise ArgumentTypeError(f"{path} must be of a set predictor, got {type(model).__name__}")
    return model


def add_options(parser):
    parser.add_argument(
        "--inception",
        type=inception_file,
        help="TorchScript file of the Inception network (inception-2015-12-05.pt), for the FID",
    )
    parser.add_argument(
        "--counter",
        type=set_predictor,
        help="run of a set predictor, or pretrained/set_prediction-smm-64, that counts the objects "
        "of written pictures",
    )


PIPELINE = Pipeline(
    "slate",
    "Learn to take pictures apart into slots and to write them again, token by token. Without a "
    "command: train the tiny preset on built-in scenes (at most 20 minutes on two cores), then "
    "evaluate; sample draws what is written from the slots.",
    Config,
    build_model,
    train,
    MEASURED,
    {"eval": evaluate, "sample": sample},
    show,
    optional=OPTIONAL,
    least=2,  # for a distance of distributions, and to mix slots
    examples="""\
  # pictures written from slots, and from the slots of two pictures
  python -m examples.slate sample --out runs/slate-1
""",
    add_options=add_options,
)

if __name__ == "__main__":
    sys.exit(main(PIPELINE))
