"""CLEVR's properties of an object as 19 numbers, in the generator's order (properties.json)."""

from __future__ import annotations

from numbers import Real

import numpy as np

from .fields import shown, take

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
FARTHEST = 1_000_000  # coordinate; scenes are about 6 wide
_NAMES = {"size": SIZES, "material": MATERIALS, "shape": SHAPES, "color": COLORS}


def encode(objects, rows=MOST_OBJECTS) -> np.ndarray:
    """Target (rows, 19) float32 of a list of objects; rows beyond the objects are zeros.

    Each object is a dict with "3d_coords" (x, y, z), "size", "material", "shape" and "color", as in
    CLEVR's scenes. Raises ValueError for more objects than rows, or naming the object (1 is the
    first) and the property that is missing or cannot be.
    """
    if len(objects) > rows:
        raise ValueError(f"a scene may have {rows} objects, got {len(objects)}")
    target = np.zeros((rows, WIDTH), np.float32)
    for number, (row, thing) in enumerate(zip(target, objects), 1):
        what = f"object {number}"
        row[COORDINATES] = _place(take(thing, "3d_coords", (list, tuple, np.ndarray), what), what)
        for group, columns in GROUPS.items():
            names = _NAMES[group]
            value = take(thing, group, str, what)
            if value not in names:
                known = f"one of {', '.join(names)}"
                raise ValueError(f"{what}: {group} must be {known}, got {shown(value)}")
            row[columns.start + names.index(value)] = 1
        row[REAL] = 1
    return target


def _place(coordinates, what):
    numbers = [x for x in coordinates if isinstance(x, Real) and not isinstance(x, bool)]
    if len(coordinates) != 3 or sum(abs(x) <= FARTHEST for x in numbers) != 3:
        expected = f"three numbers of at most {FARTHEST:,}"
        raise ValueError(f"{what}: 3d_coords must be {expected}, got {shown(coordinates)}")
    return np.array(coordinates, float) / COORDINATE_SCALE


def likeliest(row) -> dict[str, tuple[str, float]]:
    """Of each property of a target's or a prediction's row: the likeliest value, its probability.

    In the order in which words name them.
    """
    found = {}
    for group in ("size", "color", "material", "shape"):
        shares = row[GROUPS[group]]
        best = int(np.argmax(shares))
        found[group] = _NAMES[group][best], float(shares[best])
    return found


def describe(row) -> str:
    """One row of a target or a prediction in words, such as "large red metal cube"."""
    return " ".join(value for value, _ in likeliest(row).values())
