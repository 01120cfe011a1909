"""Command line of object discovery; `python -m examples.object_discovery --help`."""

from __future__ import annotations

import sys

from ..shared.command import Pipeline, add_merge, explain, main, spread
from ..shared.diagnostics import describe, watch
from .config import Config
from .plots import MEASURED, discovery
from .show import show
from .train import OPTIONAL, build_model, figures, train

LARGEST = "argmax of the decoder's masks, at the picture's size"
LIKELIEST = "the slot most likely to have drawn a pixel, by the decoder's mask and picture"
MEANING = (
    "mse: of the pictures, lower is better. ari (all pixels), fg_ari (objects' alone): agreement "
    "with the true masks, 0 by chance. mbo, miou: overlap of objects with masks. 1 is perfect. "
    "count_accuracy: pictures whose objects are counted right; count_error: mean difference."
)


def evaluate(model, pictures, config, options):
    mean, deviation = spread(
        [figures(model, pictures, config, draw) for draw in range(options.draws)]
    )
    for name, value in mean.items():
        print(f"{name:16s}{value:.4f} ± {deviation[name]:.4f}")
    explain(MEANING, "fg_ari 0.91 and ari 0.88", 4_500, config, options)
    print(describe(watch(model, pictures, config)))
    if options.out:
        discovery(model, pictures, config, options.out)
        print(f"pictures: {options.out / 'discovery.png'}, {options.out / 'attention.png'}")
    protocol = {
        "draws": options.draws,
        "max_objects": config.max_objects,
        "mse": "mean over pixels and channels of values in [-1, 1]",
        "masks": LIKELIEST if config.background == "own" else LARGEST,
    }
    return {**mean, "draws_std": deviation}, protocol


PIPELINE = Pipeline(
    "object_discovery",
    "Learn to take pictures apart into objects, without labels. Without a command: train the tiny "
    "preset on built-in scenes (about 15 minutes on two cores), then evaluate.",
    Config,
    build_model,
    train,
    MEASURED,
    {"eval": evaluate},
    show,
    optional=OPTIONAL,
    add_options=add_merge,
)

if __name__ == "__main__":
    sys.exit(main(PIPELINE))
