"""What the readers of data sets in files share: pictures, label maps, crops, resizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .properties import MOST_OBJECTS


class Reader:
    """A data set in files; see `examples.data.open_dataset` for the items.

    A reader of one format has a `name`, says whether a folder `fits` it and what other `splits`
    that holds, and once opened has `ids` (a str an item), `read(index)` (the item's arrays) and
    `files()` (every path that it reads, there or not).

    official : the official splits' names. known : the splits that it takes; None: those there are.
    takes : names of the options that it takes beyond root, split and size, all None by default.
    most_objects : the most objects of a picture, so that an option `max_objects` of as many leaves
        nothing out. Where a picture may have more (COCO), what slots are made for by default.
    """

    official: tuple[str, ...] = ()
    known: tuple[str, ...] | None = None
    takes: tuple[str, ...] = ()
    most_objects: int = MOST_OBJECTS

    @staticmethod
    def splits(root):
        return ()

    @staticmethod
    def part(height, width):
        """(top, left, height, width) of the part of a picture that is brought to a `size`."""
        return 0, 0, height, width

    @classmethod
    def prepare(cls, image, size, path):
        """A picture (H, W, 3) at size x size, as an item has it; errors name `path`."""
        top, left, height, width = cls.part(*image.shape[:2])
        if not min(height, width):
            raise too_small(path, image)
        return bilinear(image[top : top + height, left : left + width], size, size)

    def __init__(self, root, split="train", size=None, **options):
        for name in options:
            if name not in self.takes:
                raise TypeError(
                    f"{name} must be left out with the data set {self.name}, which takes "
                    f"{', '.join(self.takes) or 'no options'}, got {options[name]!r}"
                )
        self.root, self.split, self.size = Path(root), split, size
        self.options = {name: options.get(name) for name in self.takes}
        if self.known:
            one_of("split", split, self.known)
        self.open()

    def open(self):
        """Find the files, and read what lists them."""

    def too_many(self, objects) -> bool:
        """Whether a picture of so many objects is left out."""
        most = self.options.get("max_objects")
        return most is not None and objects > most

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"index must be from 0 to {len(self) - 1}, got {index}")
        return {**self.read(index), "id": self.ids[index]}


def there_are(names):
    """The end of a message that something is missing: what there is in its place."""
    return f"; there are {', '.join(names)}" if names else ""


def one_of(name, value, known):
    """`value`, or ValueError that says what the argument `name` may be."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def decoded(path, kind, decode):
    """decode(Pillow's image) of a file; an error says what `kind` of file it is, and names it."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{kind} {path} cannot be read: it is a folder")
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
    return decoded(path, kind, _rgb)


def load_as_viewed(path) -> np.ndarray:
    """As `load_image`, but as a viewer shows it: turned as EXIF says, what is transparent white."""
    return decoded(path, "picture", _viewed)


def _viewed(image):
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or (
        "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    ):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return _rgb(image)


def _rgb(image):
    if image.mode.startswith("I;16"):
        return np.repeat((np.array(image) >> 8).astype(np.uint8)[..., None], 3, 2)
    if image.mode in "IF":
        raise ValueError("its pixels have 32 bits")
    if "transparency" in image.info:  # which Pillow warns of when it drops it by itself
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def load_labels(path, image) -> np.ndarray:
    """A label map as (H, W) uint8, of the picture's size: grey values, or a palette's indices."""
    labels = decoded(path, "mask", _indices)
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
    """Pillow's bilinear filter: it averages where it shrinks and rounds, as official readers do."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def nearest(labels, height, width) -> np.ndarray:
    """The label under each new pixel's centre, as Pillow picks it; labels are uint8 or int32."""
    return np.array(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def centre(array, height, width, path):
    """The middle of an image or label map, as by torchvision's CenterCrop; errors name `path`."""
    gaps = array.shape[0] - height, array.shape[1] - width
    if min(gaps) < 0 or not min(height, width):
        raise too_small(path, array)
    top, left = (round(gap / 2) for gap in gaps)
    return array[top : top + height, left : left + width]


def too_small(path, array):
    shape = f"{array.shape[0]} x {array.shape[1]} pixels"
    return ValueError(f"{path} is too small for its data set's crop: {shape}")


def middle(height, width, side):
    """`Reader.part` of a square in the middle."""
    return round((height - side) / 2), round((width - side) / 2), side, side


def short_side(array, size):
    """(height, width) with the shorter one brought to `size`, as by torchvision's Resize(size)."""
    height, width = array.shape[:2]
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size
