"""The float64 vectors in tests/data/vectors, whose README says what they hold."""

import json
from pathlib import Path

import numpy as np

FILES = sorted(Path(__file__).with_name("data").glob("vectors/*.npz"))


def read(file, package):
    """(class of `package`, its options, the file's arrays by group) of a file."""
    with np.load(file) as arrays:
        options = json.loads(str(arrays["meta"]))
        groups = {"p": {}, "in": {}, "out": {}, "g": {}}
        for key in arrays.files:
            group, _, name = key.partition("/")
            if name:
                groups[group][name] = arrays[key]
    kind = getattr(package, options.pop("kind"))
    if not groups["p"]:  # a layer without networks has one width
        del options["hidden_dim"], options["input_dim"]
    return kind, options, groups
