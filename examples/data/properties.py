"""CLEVR's properties of an object as 19 numbers, in the generator's order (properties.json)."""

from __future__ import annotations

import numpy as np

SIZES = ("small", "large")
MATERIALS = ("rubber", "metal")
SHAPES = ("cube", "sphere", "cylinder")
COLORS = ("gray", "blue", "brown", "yellow", "red", "green", "purple", "cyan")

# columns of a target; coordinates are divided by 3, which brings them to about [-1, 1]
COORDINATES = slice(0, 3)
GROUPS = {
    "size": slice(3, 5),
    "material": slice(5, 7),
    "shape": slice(7, 10),
    "color": slice(10, 18),
}
REAL = 18
WIDTH = 19
MOST_OBJECTS = 10
COORDINATE_SCALE = 3.0
_NAMES = {"size": SIZES, "material": MATERIALS, "shape": SHAPES, "color": COLORS}


def encode(objects) -> np.ndarray:
    """Target (10, 19) float32 of a list of objects; rows beyond the objects are zeros.

    Each object is a dict with "3d_coords" (x, y, z), "size", "material", "shape" and "color", as in
    CLEVR's scenes. Raises ValueError for more than 10 objects or an unknown property.
    """
    if len(objects) > MOST_OBJECTS:
        raise ValueError(f"a scene may have {MOST_OBJECTS} objects, got {len(objects)}")
    target = np.zeros((MOST_OBJECTS, WIDTH), np.float32)
    for row, thing in zip(target, objects):
        row[COORDINATES] = np.asarray(thing["3d_coords"], float) / COORDINATE_SCALE
        for group, columns in GROUPS.items():
            names = _NAMES[group]
            if thing[group] not in names:
                raise ValueError(f"{group} must be one of {', '.join(names)}, got {thing[group]!r}")
            row[columns.start + names.index(thing[group])] = 1
        row[REAL] = 1
    return target


def describe(row) -> str:
    """One row of a target or a prediction in words, such as "large red metal cube"."""

    def name(group):
        return _NAMES[group][int(np.argmax(row[GROUPS[group]]))]

    return " ".join(map(name, ("size", "color", "material", "shape")))
