"""Reader of COCO 2017 (Lin et al. 2014, https://cocodataset.org) in its official layout.

    ROOT/annotations/instances_<split>2017.json
    ROOT/<split>2017/000000000139.jpg             or ROOT/images/<split>2017/

Masks need pycocotools, whose outlines of polygons everybody's figures rest on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .clevr import load_json
from .folder import fit
from .reader import Reader, bilinear, load_image, nearest, there_are


class Coco(Reader):
    """COCO with instance masks, in the order of the annotation file (pycocotools' getImgIds).

    The mask is i at the i-th annotation of the picture, int32; where annotations overlap the first
    wins, and crowds count as objects, as in SPOT (`datasets.py` of
    https://github.com/gkakogeorgiou/spot). With `size` the shorter side is resized to `size`,
    bilinear (Pillow) and nearest, and the middle cropped, as there. The splits are train (118,287)
    and val (5,000).
    """

    name = "coco"
    official = ("train", "val")

    def open(self):
        _pycocotools()
        self.annotations = self.root / "annotations" / f"instances_{self.split}2017.json"
        if not self.annotations.is_file():
            have = [f"instances_{s}2017.json" for s in self.splits(self.root)]
            raise FileNotFoundError(f"{self.annotations} is missing{there_are(have)}")
        folders = [self.root / f"{self.split}2017", self.root / "images" / f"{self.split}2017"]
        self.folder = next((f for f in folders if f.is_dir()), None)
        if self.folder is None:
            raise FileNotFoundError(f"folder {folders[0]} is missing")
        content = load_json(self.annotations)
        try:
            self.pictures = {
                p["id"]: (p["file_name"], p["height"], p["width"]) for p in content["images"]
            }
            self.outlines = {image: [] for image in self.pictures}
            for one in content["annotations"]:
                self.outlines[one["image_id"]].append((one["id"], one["segmentation"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.annotations} cannot be read: {error!r}") from error
        self.numbers = list(self.pictures)
        self.ids = [Path(name).stem for name, _, _ in self.pictures.values()]

    @staticmethod
    def splits(root):
        return sorted(p.name[10:-9] for p in (root / "annotations").glob("instances_*2017.json"))

    fits = splits

    def files(self):
        return [self.annotations] + [self.folder / name for name, _, _ in self.pictures.values()]

    def read(self, index):
        number = self.numbers[index]
        name, height, width = self.pictures[number]
        path = self.folder / name
        image = load_image(path)
        if image.shape[:2] != (height, width):
            raise ValueError(
                f"picture {path} must be {height} x {width} as {self.annotations} says, "
                f"got {image.shape[:2]}"
            )
        mask = np.zeros((height, width), np.int32)
        for i, (annotation, outline) in enumerate(self.outlines[number], 1):
            mask[(mask == 0) & self._drawn(annotation, outline, height, width)] = i
        return {
            "image": fit(image, self.size, bilinear, path),
            "mask": fit(mask, self.size, nearest, path),
        }

    def _drawn(self, annotation, outline, height, width):
        """(height, width) bool of an annotation: polygons, or run lengths, compressed or not."""
        coco, what = _pycocotools(), f"annotation {annotation} of {self.annotations}"
        try:
            if isinstance(outline, list):
                outline = coco.merge(coco.frPyObjects(outline, height, width))
            elif isinstance(outline["counts"], list):
                outline = coco.frPyObjects(outline, height, width)
            drawn = coco.decode(outline) > 0
        except Exception as error:  # pycocotools raises bare exceptions
            raise ValueError(f"{what} cannot be drawn: {error}") from error
        if drawn.shape != (height, width):
            raise ValueError(f"{what} must be {height} x {width}, got {drawn.shape}")
        return drawn


def _pycocotools():
    try:
        from pycocotools import mask
    except ImportError as error:
        message = "the masks of COCO need pycocotools: pip install 'pycocotools>=2.0.7'"
        raise ImportError(message) from error
    return mask
