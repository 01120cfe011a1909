"""`show`: what a trained model makes of a user's pictures, each as a PNG and as numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .. import data
from ..data.folder import SUFFIXES, pictures_in
from ..data.reader import load_as_viewed
from .files import make_folder, write_atomically
from .pictures import open_pictures


class Given(NamedTuple):
    """A user's picture as a model reads it."""

    path: Path
    image: np.ndarray  # (S, S, 3) uint8
    size: tuple[int, int]  # width and height of the user's
    part: tuple[int, int, int, int]  # left, top, width and height of what is read of it

    def place(self, x, y):
        """Where a point of `image` (0 to S) is in the user's picture, in its pixels."""
        left, top, width, height = self.part
        side = len(self.image)
        return [round(left + float(x) * width / side, 1), round(top + float(y) * height / side, 1)]

    def told(self):
        """How it was brought to the model's size."""
        width, height = self.size
        left, top, *part = self.part
        cut = f"columns {left} to {left + part[0] - 1} and rows {top} to {top + part[1] - 1} of it"
        read = "all" if tuple(part) == self.size else cut
        side = len(self.image)
        return f"{width} x {height} pixels, {read} resized to {side} x {side}"


class Shown(NamedTuple):
    """What a model makes of a `Given`."""

    figures: dict  # for JSON
    lines: list[str]  # for people
    draw: Callable  # (path): writes the PNG


def files_of(paths):
    """The pictures that a user names: files, and all those in folders."""
    found = []
    for path in paths:
        found += pictures_in(path) if path.is_dir() else [path]
        if path.is_dir() and not pictures_in(path):
            raise ValueError(f"folder {path} has no picture ({', '.join(SUFFIXES)})")
    return found


def scenes(config, split, count, out):
    """Built-in scenes as pictures of a user, written below `out`."""
    if config.data is not None or config.dataset not in (None, "scenes"):
        raise ValueError("show needs a PICTURE: a file, or a folder of pictures")
    drawn = open_pictures(config, split, count).batch(list(range(count)))[0]
    make_folder(out)
    files = [out / f"{split}-{number}.png" for number in range(count)]
    for file, image in zip(files, drawn):
        write_atomically(file, lambda path, image=image: Image.fromarray(image).save(path, "PNG"))
    return files


def reader_of(config):
    """The reader of the data set of a run, which brings pictures to the model's size.

    Built-in scenes are square: other pictures are cropped to their middle, as those of a folder.
    """
    if config.dataset in data.READERS:
        return data.READERS[config.dataset]
    if config.data is None:
        return data.READERS["folder"]
    if Path(config.data).is_dir():
        return data.find_reader(config.data)
    print(
        f"note: {config.data}, which the model has learned from, is not there: pictures are "
        "cropped to their middle; give --dataset to have them cropped as that data set's",
        file=sys.stderr,
    )
    return data.READERS["folder"]


def read(path, reader, size) -> Given:
    image = load_as_viewed(path)
    height, width = image.shape[:2]
    top, left, *part = reader.part(height, width)
    own = reader.prepare(image, size, path)
    return Given(path, own, (width, height), (left, top, *part[::-1]))


def places(files, out):
    """A PNG of its own for each file."""
    taken = []
    for file in files:
        name, number = f"{file.stem}-shown.png", 1
        while name in taken:
            number += 1
            name = f"{file.stem}-shown-{number}.png"
        taken.append(name)
    return [out / name for name in taken]


def show_all(show, config, paths, out, say=print):
    """Write what `show` makes of each picture below `out`; the figures of each.

    show : Given -> `Shown`. All pictures are read before anything is written.
    """
    files, reader = files_of(paths), reader_of(config)
    given = [read(path, reader, config.image_size) for path in files]
    make_folder(out)
    found = []
    for one, place in zip(given, places(files, out)):
        shown = show(one)
        shown.draw(place)
        say("\n  ".join([f"{one.path}: {one.told()}", *shown.lines, f"picture: {place}"]))
        facts = {"file": str(one.path), "size": one.size, "part": one.part, "shown": str(place)}
        found.append({**facts, **shown.figures})
    return found
