"""Reader of COCO 2017 (Lin et al. 2014, https://cocodataset.org) in its official layout.

    ROOT/annotations/instances_<split>2017.json
    ROOT/<split>2017/000000000139.jpg             or ROOT/images/<split>2017/

Masks need pycocotools, whose outlines of polygons everybody's figures rest on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .fields import load_json, shown, take
from .folder import Folder, fit
from .reader import Reader, load_image, nearest, there_are

FARTHEST = 1_000_000  # pixels; outlines may end a little outside of their picture


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
        content = load_json(self.annotations, "annotations")
        self.pictures, self.outlines = {}, {}
        for one, what in self._records(content, "images", "picture"):
            number, name = take(one, "id", int, what), take(one, "file_name", str, what)
            self.pictures[number] = name, *(take(one, x, int, what) for x in ("height", "width"))
            self.outlines[number] = []
        for one, what in self._records(content, "annotations", "annotation"):
            number = take(one, "image_id", int, what)
            if number in self.outlines:  # others are ignored, as pycocotools does
                outline = take(one, "segmentation", (list, dict), what)
                self.outlines[number].append((take(one, "id", int, what), outline))
        self.numbers = list(self.pictures)
        self.ids = [Path(name).stem for name, _, _ in self.pictures.values()]

    part, prepare = staticmethod(Folder.part), Folder.prepare

    def _records(self, content, name, kind):
        """(record, what it is) of a list in the annotation file."""
        for index, one in enumerate(take(content, name, list, f"annotations {self.annotations}")):
            own = one.get("id") if isinstance(one, dict) else None
            which = f"at index {index}" if own is None else shown(own)
            yield one, f"{kind} {which} of {self.annotations}"

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
            "image": self.prepare(image, self.size, path),
            "mask": fit(mask, self.size, nearest, path),
        }

    def _drawn(self, annotation, outline, height, width):
        """(height, width) bool of an annotation: polygons, or run lengths, compressed or not."""
        coco, what = _pycocotools(), f"annotation {annotation} of {self.annotations}"
        try:
            parts = outline if isinstance(outline, list) else [outline]
            runs = [part for part in parts if isinstance(part, dict)]
            for one in runs:
                size = take(one, "size", list, "the outline")
                if size != [height, width]:
                    raise ValueError(f"its outline must be {height} x {width}, got {shown(size)}")
                _check_counts(take(one, "counts", (list, str), "the outline"), height * width)
            if isinstance(outline, list):
                if len(runs) < len(parts):
                    _check_polygons(outline)
                outline = coco.merge(coco.frPyObjects(outline, height, width))
            elif isinstance(outline["counts"], list):
                outline = coco.frPyObjects(outline, height, width)
            return coco.decode(outline) > 0
        except Exception as error:  # pycocotools raises bare exceptions
            raise ValueError(f"{what} cannot be drawn: {error}") from error


# pycocotools reads and writes memory that is not its own at outlines that these refuse


def _check_polygons(polygons):
    for one in polygons:
        numbers = isinstance(one, list) and all(isinstance(x, (int, float)) for x in one)
        if not numbers or len(one) < 4 or not all(abs(x) <= FARTHEST for x in one):
            expected = f"a list of at least 4 numbers of at most {FARTHEST:,}"
            raise ValueError(f"a polygon must be {expected}, got {shown(one)}")


def _check_counts(counts, pixels):
    """Run lengths, as a list or as pycocotools' text."""
    counts = _run_lengths(counts) if isinstance(counts, str) else counts
    if not isinstance(counts, list) or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise ValueError(f"counts must be run lengths, got {shown(counts)}")
    if sum(counts) != pixels:
        raise ValueError(f"counts must be of {pixels} pixels, got {sum(counts)}")


def _run_lengths(text):
    """Of a text: 5 bits a letter, lowest first, bit 6 says more; from the third on, differences."""
    counts, value, bits = [], 0, 0
    for letter in text:
        code = ord(letter) - 48
        value |= (code & 31) << bits
        bits += 5
        if not code & 32:
            value -= (code & 16) << bits - 4
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = bits = 0
    if bits or not all("0" <= letter <= "o" for letter in text):
        raise ValueError(f"counts must be run lengths as text, got {shown(text)}")
    return counts


def _pycocotools():
    try:
        from pycocotools import mask
    except ImportError as error:
        message = "the masks of COCO need pycocotools: pip install 'pycocotools>=2.0.7'"
        raise ImportError(message) from error
    return mask
