"""Make a model that ships of a trained run: `python -m examples.pretrained RUN`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from safetensors.torch import save_file

from .. import load
from ..shared.command import folder, tell
from ..shared.files import write_atomically
from ..slate.dvae import NAME
from . import HERE


def ship(run, out=HERE, slots=None):
    """Write a run's model into the folder `out`; returns the file's path.

    slots : what it is used with, if not what it was trained with.
    """
    model = load(run)
    config = replace(model.config, slots=slots or model.config.slots, least_slots=None)
    weights = {name: w.half().contiguous() for name, w in model.state_dict().items()}
    pipeline, kind = type(config).__module__.split(".")[-2], config.model
    if getattr(config, "dvae_alone", 0) == 1:  # nothing else has learned
        kind, weights = "dvae", {k: w for k, w in weights.items() if k.startswith(NAME)}
    path = out / f"{pipeline}-{kind}-{config.image_size}.safetensors"
    settings = {"config": config.without_places()}
    write_atomically(path, lambda place: save_file(weights, place, settings))
    return path


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m examples.pretrained", description=__doc__.split(":")[0] + "."
    )
    parser.add_argument("run", type=folder, help="the run's folder")
    what = "what the model is used with (default: as trained)"
    parser.add_argument("--slots", type=int, help=what)
    options = parser.parse_args(arguments)
    path = ship(options.run, slots=options.slots)
    print(f"{path}: {path.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    sys.exit(tell(main))
