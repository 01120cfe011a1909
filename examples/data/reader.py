"""What the readers of data sets in files share: pictures, label maps, crops, resizes, and a data set's form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


class Reader:
    """A data set in files; see `examples.data.open_dataset` for the items.

    A reader of one format has a `name` and the `official` splits' names, says whether a folder `fits` it and what other `splits` that
    holds, and once opened has `ids` (a str an item), `read(index)` (the item's arrays), `files()` (every path that it reads, there or
    not) and its `options`.
    """

    official: tuple = ()
    options: dict = {}

    @staticmethod
    def splits(root):
        return ()

    def __init__(self, root, split, size):
        self.root, self.split, self.size = Path(root), split, size

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"index must be from 0 to {len(self) - 1}, got {index}")
        return {**self.read(index), "id": self.ids[index]}


def one_of(name, value, known):
    """`value`, or ValueError that says what the argument `name` may be."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def _decoded(path, kind, decode):
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{kind} {path} is missing")
    try:
        with Image.open(path) as image:
            return decode(image)
    except Exception as error:  # Pillow's decoders raise almost anything at broken files
        raise ValueError(f"{kind} {path} cannot be read: {error}") from error


def load_image(path, kind="picture") -> np.ndarray:
    """A picture as (H, W, 3) uint8, RGB; an error names the file.

    Grey becomes three equal channels, alpha is dropped, 16 bits a pixel become 8.
    """
    return _decoded(path, kind, _rgb)


def _rgb(image):
    if image.mode.startswith("I;16"):
        return np.repeat((np.array(image) >> 8).astype(np.uint8)[..., None], 3, 2)
    if image.mode in "IF":
        raise ValueError("its pixels have 32 bits")
    if (
        "transparency" in image.info
    ):  # Pillow warns when it drops a palette's transparency by itself
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def load_labels(path, image) -> np.ndarray:
    """A label map as (H, W) uint8: grey values, or a palette's indices. It must have the picture's height and width."""
    labels = _decoded(path, "mask", _indices)
    check_shape(path, labels, image)
    return labels


def _indices(image):
    if image.mode not in ("1", "L", "P"):
        raise ValueError(f"it has mode {image.mode}, not 8 bit grey or a palette")
    return np.array(image).astype(np.uint8)


def check_shape(path, labels, image):
    if labels.shape != image.shape[:2]:
        raise ValueError(
            f"mask {path} must have its picture's shape {image.shape[:2]}, got {labels.shape}"
        )


def bilinear(image, height, width) -> np.ndarray:
    """Pillow's bilinear filter, which averages where it shrinks and rounds to 8 bits, as the official readers do."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def nearest(labels, height, width) -> np.ndarray:
    """The label under each new pixel's centre, as Pillow picks it; labels are uint8 or int32."""
    return np.array(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def centre(array, height, width, path):
    """The middle of an image or label map, placed as by torchvision's CenterCrop; `path` is for the error."""
    gaps = array.shape[0] - height, array.shape[1] - width
    if min(gaps) < 0 or not min(height, width):
        raise ValueError(
            f"{path} is too small for its data set's crop: {array.shape[0]} x {array.shape[1]} pixels"
        )
    top, left = (round(gap / 2) for gap in gaps)
    return array[top : top + height, left : left + width]


def short_side(array, size):
    """(height, width) with the shorter of the two brought to `size`, as by torchvision's Resize(size)."""
    height, width = array.shape[:2]
    return (
        (size, int(size * width / height))
        if height <= width
        else (int(size * height / width), size)
    )
