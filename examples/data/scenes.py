"""Built-in scenes: pictures with CLEVR's properties, drawn in NumPy in about a millisecond.

A camera looks down on a grey floor with cubes, spheres and cylinders of two sizes and two materials
in CLEVR's eight colours. Near objects hide far ones, light comes from the left, shadows fall to the
right. Every picture is a function of (seed, split, index) alone.

Where there may be more than ten objects, the floor stays as large, and objects are so much smaller
that as many pixels of it are covered: see `shrinking`.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .properties import COLORS, MATERIALS, MOST_OBJECTS, SHAPES, SIZES, encode
from .reader import one_of

RADII = {"small": 0.35, "large": 0.7}  # the official generator's, in its units of the floor
_HEX = "575757 2a4bd7 814a19 ffee33 ad2323 1d6914 8126c0 29d0d0".split()
RGB = {name: tuple(bytes.fromhex(code)) for name, code in zip(COLORS, _HEX)}
SPLITS = {"train": 0, "val": 1, "test": 2}
EXTENT = 3.0  # objects stand within this distance of the floor's middle, along x and along y
MARGIN = 0.2  # least free distance between two objects
VISIBLE = 0.0025  # least share of the picture's pixels that each object shows
MOST = 100  # objects of a scene

_CAMERA = np.array([0.0, -11.0, 8.5])
_TARGET = np.array([0.0, -0.3, 0.2])
_ZOOM = 1.62  # focal length in picture widths
_LIGHT = np.array([-0.55, -0.35, 0.76])

_FORWARD = (_TARGET - _CAMERA) / np.linalg.norm(_TARGET - _CAMERA)
_RIGHT = np.array([1.0, 0.0, 0.0])
_DOWN = np.cross(_FORWARD, _RIGHT)
_VIEW = np.stack([_RIGHT, _DOWN, _FORWARD])
_LIGHT = _LIGHT / np.linalg.norm(_LIGHT)
_HALF = (_LIGHT - _FORWARD) / np.linalg.norm(_LIGHT - _FORWARD)  # between the light and the eye
_LIGHT_VIEW, _HALF_VIEW = _VIEW @ _LIGHT, _VIEW @ _HALF


class Scenes:
    """A data set of built-in scenes; see `examples.data.open_dataset` for the items.

    Parameters
    ----------
    split : "train", "val" or "test"; they never share a picture.
    size : int. Height and width in pixels.
    min_objects, max_objects : int. At most 100. Above 10, objects shrink: see `shrinking`; those
        that are hidden are left out, so a scene may have some less than min_objects.
    count : int. Length of the set; pictures are drawn when asked for.
    seed : int.
    """

    def __init__(
        self, split="train", size=None, min_objects=2, max_objects=6, count=1_000_000, seed=0
    ):
        one_of("split", split, SPLITS)
        size = 64 if size is None else size
        if not 16 <= size <= 2048:
            raise ValueError(f"size must be from 16 to 2048, got {size}")
        check_objects(min_objects, max_objects)
        self.split, self.size, self.count, self.seed = split, size, count, seed
        self.min_objects, self.max_objects = min_objects, max_objects

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if not 0 <= index < self.count:
            raise IndexError(f"index must be from 0 to {self.count - 1}, got {index}")
        rng = np.random.Generator(np.random.Philox(key=[self.seed * 4 + SPLITS[self.split], index]))
        objects = []
        while not objects:
            objects, image, mask = self._draw(rng)
        target = encode(objects, max(MOST_OBJECTS, self.max_objects))
        name = f"{self.split}_{index:07d}"
        return {"image": image, "mask": mask, "target": target, "id": name}

    def _draw(self, rng):
        """Objects, picture, mask; of at most ten objects, none where one is hidden too well."""
        scale = shrinking(self.max_objects)
        count = int(rng.integers(self.min_objects, self.max_objects + 1))
        objects = draw_objects(rng, count, scale)
        image, mask = draw_scene(objects, self.size)
        shown = np.bincount(mask.ravel(), minlength=len(objects) + 1)[1:]
        seen = [o for o, n in zip(objects, shown) if n >= VISIBLE * (scale * self.size) ** 2]
        if len(seen) == len(objects):
            return objects, image, mask
        if self.max_objects <= MOST_OBJECTS:
            return [], image, mask
        return seen, *draw_scene(seen, self.size)  # among many, one that is hidden is left out


def check_objects(least, most):
    """ValueError for numbers of objects that a scene cannot have."""
    if not 1 <= least <= most <= MOST:
        raise ValueError(
            f"min_objects and max_objects must be in order and from 1 to {MOST}, "
            f"got {least} and {most}"
        )


def shrinking(most):
    """By what lengths of objects are multiplied in scenes of at most `most`: 1 up to ten.

    Above, their areas are in inverse proportion to the number.
    """
    return min(1.0, (MOST_OBJECTS / most) ** 0.5)


def draw_objects(rng, count, scale=1.0):
    """`count` objects that do not touch, as dicts of CLEVR's scenes (rotation in degrees).

    scale : of their radii and of what is free between them.
    """
    margin = scale * MARGIN
    while True:
        objects, places = [], []
        for _ in range(10 * max(count, MOST_OBJECTS)):
            size = SIZES[rng.integers(2)]
            radius = scale * RADII[size]
            x, y = rng.uniform(-EXTENT, EXTENT, 2)
            if any((x - a) ** 2 + (y - b) ** 2 < (radius + r + margin) ** 2 for a, b, r in places):
                continue
            places.append((x, y, radius))
            thing = {"3d_coords": (x, y, radius), "size": size, "rotation": rng.uniform(0, 90)}
            for group, names in (("material", MATERIALS), ("shape", SHAPES), ("color", COLORS)):
                thing[group] = names[rng.integers(len(names))]
            objects.append(thing)
            if len(objects) == count:
                return objects


def project(points, size):
    """Pixel coordinates (x, y) and depth of points (..., 3) of the floor's space."""
    seen = (np.asarray(points) - _CAMERA) @ _VIEW.T
    depth = seen[..., 2]
    return size / 2 + _ZOOM * size * seen[..., :2] / depth[..., None], depth


def draw_scene(objects, size):
    """Picture (size, size, 3) uint8 and mask (size, size) uint8 of objects; i marks the i-th."""
    canvas = _floor(size).copy()
    mask = np.zeros((size, size), np.uint8)
    for thing in objects:
        _draw_shadow(canvas, thing, size)
    order = sorted(range(len(objects)), key=lambda i: objects[i]["3d_coords"][1], reverse=True)
    for i in order:
        window, coverage, colour = _DRAW[objects[i]["shape"]](objects[i], size)
        canvas[window] += coverage[..., None] * (colour - canvas[window])
        mask[window][coverage > 0.5] = i + 1
    return (_unit(canvas) * 255 + 0.5).astype(np.uint8), mask


@lru_cache(maxsize=8)
def _floor(size):
    """Grey, lighter towards the horizon and the middle."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    light = 0.55 - 0.16 * y - 0.22 * (x * x + y * y)
    return (light[..., None] * np.array([1.0, 0.995, 0.98])).astype(np.float32)


def _unit(x):
    """Clipped to [0, 1]; `np.clip` takes three times as long on few pixels."""
    return np.minimum(np.maximum(x, 0), 1)


def _window(left, top, right, bottom, size):
    """The part of the picture within bounds, and its pixels' centres."""
    x0, y0 = max(int(left) - 1, 0), max(int(top) - 1, 0)
    x1, y1 = min(int(right) + 3, size), min(int(bottom) + 3, size)
    x1, y1 = max(x1, x0), max(y1, y0)
    x = np.arange(x0, x1, dtype=np.float32) + np.float32(0.5)
    y = np.arange(y0, y1, dtype=np.float32)[:, None] + np.float32(0.5)
    return (slice(y0, y1), slice(x0, x1)), x, y


def _draw_shadow(canvas, thing, size):
    """A soft ellipse on the floor, away from the light."""
    x, y, radius = thing["3d_coords"]
    reach = radius * 0.75
    x, y = (x, y) - reach * _LIGHT[:2] / _LIGHT[2]
    place, depth = project(np.array([x, y, 0.0]), size)
    wide = 1.45 * radius * _ZOOM * size / depth
    high = wide * -_FORWARD[2]
    reach = np.array([wide, high])
    window, px, py = _window(*(place - reach), *(place + reach), size)
    distance = ((px - place[0]) / wide) ** 2 + ((py - place[1]) / high) ** 2
    canvas[window] *= (1 - 0.5 * _unit(1.15 - 1.15 * distance))[..., None]


def _shade(thing, lambert, gleam):
    """Colours (..., 3) for lambert and gleam in [0, 1]; metal is darker, with a highlight."""
    base = np.array(RGB[thing["color"]], np.float32) / 255
    if thing["material"] == "rubber":
        return base * (0.45 + 0.75 * lambert)[..., None]
    light = 0.25 + 0.75 * lambert**1.5
    return base * light[..., None] + (0.95 * gleam**12)[..., None]


def _lights(normal_x, normal_y, normal_z):
    """Lambert's cosine and the highlight's, for normals in the camera's axes."""
    lambert = normal_x * _LIGHT_VIEW[0] + normal_y * _LIGHT_VIEW[1] + normal_z * _LIGHT_VIEW[2]
    gleam = normal_x * _HALF_VIEW[0] + normal_y * _HALF_VIEW[1] + normal_z * _HALF_VIEW[2]
    return _unit(lambert), _unit(gleam)


def _sphere(thing, size):
    place, depth = project(np.array(thing["3d_coords"]), size)
    radius = thing["3d_coords"][2] * _ZOOM * size / depth
    window, px, py = _window(*(place - radius), *(place + radius), size)
    nx, ny = (px - place[0]) / radius, (py - place[1]) / radius
    squared = nx * nx + ny * ny
    coverage = _unit((1 - np.sqrt(squared)) * radius + 0.5)
    nz = -np.sqrt(_unit(1 - squared))  # towards the camera
    return window, coverage, _shade(thing, *_lights(nx, ny, nz))


def _polygons(corners, px, py):
    """Coverage (n, h, w) of convex polygons (n, 4, 2), their corners in either order."""
    edges = corners[:, [1, 2, 3, 0]] - corners
    turn = np.sign(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0])
    scale = turn[:, None] / (np.hypot(edges[..., 0], edges[..., 1]) + 1e-9)
    x, y = np.moveaxis(corners[..., None, None], 2, 0)
    ex, ey = np.moveaxis((edges * scale[..., None])[..., None, None], 2, 0)
    inside = (ex * (py - y) - ey * (px - x)).min(1)
    # bounds, as a face seen edge-on has corners too sharp for its edges alone
    across = np.minimum(px - x.min(1), x.max(1) - px)
    down = np.minimum(py - y.min(1), y.max(1) - py)
    inside = np.minimum(inside, np.minimum(across, down))
    return _unit(inside + 0.5)


_CUBE = np.array(
    [[x, y, z] for z in (-1, 1) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))], float
)
_FACES = np.array([[4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])
_NORMALS = np.array([[0, 0, 1], [0, -1, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0]], float)


def _cube(thing, size):
    angle = np.deg2rad(thing["rotation"])
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    x, y, radius = thing["3d_coords"]
    side = radius / 1.25  # of a volume like the sphere's
    centre = np.array([x, y, side])
    corners, _ = project(centre + side * _CUBE @ turn.T, size)
    window, px, py = _window(*corners.min(0), *corners.max(0), size)
    normals = _NORMALS @ turn.T
    seen = ((centre + side * normals - _CAMERA) * normals).sum(1) < 0
    parts = _polygons(corners[_FACES[seen]], px, py)
    light = 0.15 + 0.85 * np.maximum(normals[seen] @ _LIGHT, 0)
    # a gleam that runs across the face: metal mirrors its surroundings
    gleam = 0.9 - np.abs((px - px.mean()) + 0.6 * (py - py.mean())) / (2 * len(px) + 1)
    colours = _shade(thing, light[:, None, None], gleam)
    coverage = parts.sum(0)
    colour = (parts[..., None] * colours).sum(0) / np.maximum(coverage, 1e-3)[..., None]
    return window, np.minimum(coverage, 1), colour


def _cylinder(thing, size):
    x, y, radius = thing["3d_coords"]
    ends, depth = project(np.array([[x, y, 2 * radius], [x, y, 0.0]]), size)
    wide = radius * _ZOOM * size / depth
    high = wide * -_FORWARD[2]
    left, right = ends[:, 0].min() - wide.max(), ends[:, 0].max() + wide.max()
    window, px, py = _window(left, ends[0, 1] - high[0], right, ends[1, 1] + high[1], size)
    along = _unit((py - ends[0, 1]) / (ends[1, 1] - ends[0, 1]))
    middle = ends[0, 0] + along * (ends[1, 0] - ends[0, 0])
    half = wide[0] + along * (wide[1] - wide[0])
    nx = np.clip((px - middle) / half, -1, 1)
    curve = np.sqrt(1 - nx * nx)
    bottom = ends[1, 1] + high[1] * curve
    side = _unit(half - np.abs(px - middle) + 0.5)
    side = np.minimum(side, _unit(bottom - py + 0.5))
    side = np.where(py >= ends[0, 1], side, 0)
    ellipse = np.sqrt(((px - ends[0, 0]) / wide[0]) ** 2 + ((py - ends[0, 1]) / high[0]) ** 2)
    top = _unit((1 - ellipse) * high[0] + 0.5)
    # the side's normals lie in the floor's plane: to the right, and towards the camera
    to_camera = _VIEW @ np.array([0.0, -1.0, 0.0])
    colour = _shade(thing, *_lights(nx, curve * to_camera[1], curve * to_camera[2]))
    lambert = np.full(top.shape, _LIGHT[2], np.float32)
    gleam = _unit(0.93 - 0.25 * np.abs(ellipse - 0.4))
    colour += top[..., None] * (_shade(thing, lambert, gleam) - colour)
    return window, np.maximum(side, top), colour


_DRAW = {"sphere": _sphere, "cube": _cube, "cylinder": _cylinder}
