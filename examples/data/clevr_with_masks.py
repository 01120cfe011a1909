"""Reader of CLEVR with masks (Multi-Object Datasets, Kabra et al. 2019).

    ROOT/clevr_with_masks_train.tfrecords     one gzip stream of 100,000 TFRecords

A record holds a picture of 240 x 320, 11 masks (background first, then objects) and properties in
codes that are not published. Source: https://github.com/google-deepmind/multi_object_datasets.
"""

from __future__ import annotations

import numpy as np

from .reader import Reader, nearest
from .tfrecord import parse_example, records

FILE = "clevr_with_masks_train.tfrecords"
ENTITIES = 11
SHAPES = {
    "image": (240, 320, 3),
    "mask": (ENTITIES, 240, 320, 1),
    "visibility": (ENTITIES,),
    "pixel_coords": (ENTITIES, 3),
    **dict.fromkeys(("x", "y", "z", "rotation", "size", "material", "shape", "color"), (ENTITIES,)),
}
SPLITS = {"train": (0, 70_000), "val": (70_000, 85_000), "test": (85_000, None), "all": (0, None)}
ROWS, COLUMNS = slice(29, 221), slice(64, 256)


class ClevrWithMasks(Reader):
    """CLEVR with masks as a stream: gzip has no random access, so `open_dataset` caches it.

    The file has no official split; train is the first 70,000 records, as in Slot Attention, which
    evaluates on the 320 after them (google-research/google-research issue 595); here val is the
    next 15,000 and test the rest, the sizes of CLEVR itself. With `size` rows 29 to 220 and columns
    64 to 255 are resized to size x size, bilinear (Pillow) and nearest: the crop of
    `slot_attention/data.py` of google-research. An item's id is the record's number in the file.
    `max_objects` leaves out records with more; 6 gives CLEVR6.
    """

    name = "clevr_with_masks"
    takes = ("max_objects",)
    official = tuple(SPLITS)
    known = official
    ids = None

    def open(self):
        self.path = self.root / FILE
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is missing")

    @staticmethod
    def fits(root):
        return (root / FILE).is_file()

    @staticmethod
    def part(height, width):
        """In proportion in pictures of another size, such as CLEVR's own."""
        down, across = height / SHAPES["image"][0], width / SHAPES["image"][1]
        top, bottom = (int(down * edge) for edge in (ROWS.start, ROWS.stop))
        left, right = (int(across * edge) for edge in (COLUMNS.start, COLUMNS.stop))
        return top, left, bottom - top, right - left

    def files(self):
        return [self.path]

    def __iter__(self):
        for number, content in records(self.path, *SPLITS[self.split]):
            try:
                features = decode(content, ("image", "mask", "visibility"))
            except ValueError as error:
                message = f"record {number} of {self.path} cannot be read: {error}"
                raise ValueError(message) from error
            if not self.too_many(features["visibility"].sum() - 1):  # without the background
                yield {**self._item(features["image"], features["mask"]), "id": str(number)}

    def _item(self, image, masks):
        mask = (masks[..., 0] > 127).argmax(0).astype(np.uint8)
        if self.size is not None:
            image = self.prepare(image, self.size, self.path)
            mask = nearest(mask[ROWS, COLUMNS], self.size, self.size)
        return {"image": image, "mask": mask}


def decode(content, names=tuple(SHAPES)):
    """Features of a record: uint8, and float32 for coordinates, rotation and visibility."""
    features = parse_example(content, names)
    for name, array in features.items():
        if array.size != np.prod(SHAPES[name]):
            raise ValueError(
                f"feature {name} must have shape {SHAPES[name]}, got {array.size} numbers"
            )
        if name in ("image", "mask") and array.dtype != np.uint8:
            raise ValueError(f"feature {name} must hold bytes, got {array.dtype}")
        features[name] = array.reshape(SHAPES[name])
    return features
