"""Command line of set prediction; `python -m examples.set_prediction --help`."""

from __future__ import annotations

import sys

from ..shared.command import Pipeline, add_merge, explain, main, spread
from .config import Config
from .plots import MEASURED, predictions, table
from .show import show
from .train import FIELDS, build_model, count_figures, number_true, precision, predict, train

MEANING = (
    "AP at t: precision, averaged over recall, of the objects listed; one is right if its four "
    "properties are and it is nearer than t (a scene is 6 wide; ∞: anywhere). 100 is perfect. "
    "count_accuracy: pictures whose objects are counted right; count_error: mean difference."
)


def evaluate(model, pictures, config, options):
    found = [predict(model, pictures, config, draw) for draw in range(options.draws)]
    mean, deviation = spread([precision(*both, config) for both in found])
    counts, varied = spread([count_figures(*both, config) for both in found])
    _, targets = found[0]
    most = number_true(targets).max()
    if most > config.slots:
        print(f"a picture has {most} objects, more than --slots {config.slots} can list")
    print(table(mean, deviation))
    for name, value in counts.items():
        print(f"{name:16s}{value:.4f} ± {varied[name]:.4f}")
    explain(MEANING, "93 at ∞ and 90 at 0.5", 4_600, config, options)
    if options.out:
        predictions(model, pictures, config, options.out)
        print(f"pictures: {options.out / 'predictions.png'}, {options.out / 'attention.png'}")
    return (
        {"ap": percent(mean), "ap_std": percent(deviation), **counts},
        {
            "draws": options.draws,
            "metric": "AP over the whole set, all-point interpolation",
            "apart": config.apart,
        },
    )


def percent(values):
    return {f"{t:g}": round(100 * v, 3) for t, v in values.items()}


PIPELINE = Pipeline(
    "set_prediction",
    "Learn to list the objects of a picture. Without a command: train the tiny preset on built-in "
    "scenes (about 5 minutes on two cores), then evaluate.",
    Config,
    build_model,
    train,
    MEASURED,
    {"eval": evaluate},
    show,
    FIELDS,
    data="CLEVR_v1.0",
    add_options=add_merge,
)

if __name__ == "__main__":
    sys.exit(main(PIPELINE))
