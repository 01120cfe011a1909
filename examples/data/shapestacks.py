"""Reader of ShapeStacks (Groth et al. 2018) in its official layout.

    ROOT/splits/default/{train,eval,test}.txt                                one scenario a line
    ROOT/recordings/<scenario>/rgb-w=5-f=2-l=1-c=unique-cam_7-mono-0.png     224 x 224
    ROOT/recordings/<scenario>/iseg-w=0-f=0-l=0-c=original-cam_7-mono-0.map  a PNG: channel 0 // 32
                                                                             is the object

The maps may also lie in ROOT/iseg/<scenario>/, where GENESIS-V2 looks for them
(https://github.com/applied-ai-lab/genesis). Source: https://ogroth.github.io/shapestacks.
"""

from __future__ import annotations

import numpy as np

from .reader import Reader, bilinear, centre, check_shape, load_image, middle

SIDE, CROP = 224, 196
FILES = {"train": "train", "eval": "eval", "val": "eval", "test": "test"}


class ShapeStacks(Reader):
    """ShapeStacks, sorted by path; "val" is another name of the official split "eval".

    With `size` the central 196 x 196 are resized to size x size: the picture by Pillow's bilinear
    filter, the mask by the nearest index floor(i 196 / size), as in GENESIS-V2 and BO-QSA
    (`data/shapestacks_dataset.py` of https://github.com/YuLiu-LY/BO-QSA). An item's id is its path
    below the root. Masks are absent where the maps (a download of their own) are.
    """

    name = "shapestacks"
    official = ("train", "eval", "test")
    known = tuple(FILES)

    def open(self):
        self.list = self.root / "splits" / "default" / f"{FILES[self.split]}.txt"
        if not self.list.is_file():
            raise FileNotFoundError(f"split file {self.list} is missing")
        self.ids = []
        for scenario in sorted(self._scenarios()):
            if "/" in scenario:
                raise ValueError(f"a line of {self.list} must name one folder, got {scenario!r}")
            folder = self.root / "recordings" / scenario
            pictures = sorted(p.name for p in folder.glob("rgb-*-mono-0.png"))
            if not pictures:
                what = "is missing or has no picture rgb-*-mono-0.png"
                raise FileNotFoundError(f"{folder} of {self.list} {what}")
            self.ids += [f"recordings/{scenario}/{name}" for name in pictures]
        self.maps = [self._map(path) for path in self.ids]
        self.has_masks = any(path.is_file() for path in self.maps)

    def _scenarios(self):
        try:
            return self.list.read_text().split()
        except ValueError as error:
            raise ValueError(f"split file {self.list} cannot be read: {error}") from error

    @staticmethod
    def fits(root):
        return (root / "recordings").is_dir()

    @staticmethod
    def part(height, width):
        """In proportion in pictures of another size, which the data set has not."""
        return middle(height, width, min(height, width) * CROP // SIDE)

    def _map(self, path):
        _, scenario, name = path.split("/")
        camera = name.rsplit("-", 3)[1].removeprefix("cam_")
        name = f"iseg-w=0-f=0-l=0-c=original-cam_{camera}-mono-0.map"
        apart = self.root / "iseg" / scenario / name
        return apart if apart.is_file() else self.root / "recordings" / scenario / name

    def files(self):
        pictures = [self.root / path for path in self.ids]
        return [self.list, *pictures, *(self.maps if self.has_masks else ())]

    def read(self, index):
        path = self.root / self.ids[index]
        item = {"image": load_image(path)}
        if self.has_masks:
            item["mask"] = load_image(self.maps[index], "mask")[..., 0] // 32
            check_shape(self.maps[index], item["mask"], item["image"])
        if self.size is not None:
            cropped = {key: centre(array, CROP, CROP, path) for key, array in item.items()}
            item["image"] = bilinear(cropped["image"], self.size, self.size)
            if self.has_masks:
                index = np.arange(self.size) * CROP // self.size
                item["mask"] = cropped["mask"][index[:, None], index]
        return item


def is_unstable(path) -> bool:
    """Whether the stack of a picture falls: vcom and vpsf of its scenario are not both 0."""
    return not ("-vcom=0-" in path and "-vpsf=0-" in path)
