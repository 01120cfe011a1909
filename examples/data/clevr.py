"""Reader of CLEVR v1.0 (Johnson et al. 2017) in its official layout.

    ROOT/images/<split>/CLEVR_<split>_000000.png   480 x 320 (any size is read)
    ROOT/scenes/CLEVR_<split>_scenes.json          objects with "3d_coords", "size", "material", "shape", "color"
    ROOT/masks/<split>/CLEVR_<split>_000000.png    optional, 8 bit: i marks the i-th object, 0 the background
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from .properties import encode


def load_image(path, size=None, mode="RGB", resample=Image.Resampling.BILINEAR) -> np.ndarray:
    """A picture as an array, squashed to size x size if given; an error names the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"picture {path} is missing")
    try:
        with Image.open(path) as image:
            image = image.convert(mode)
            if size is not None and image.size != (size, size):
                image = image.resize((size, size), resample)
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"picture {path} cannot be read: {error}") from error


class Clevr:
    """CLEVR with properties; see `examples.data.open_dataset` for the items.

    With `size` the whole picture is squashed to size x size, as in the set prediction of the papers.
    Objects are in the order of the scenes' file, and so are the pictures.
    """

    def __init__(self, root, split="train", size=None):
        self.root, self.split, self.size = Path(root), split, size
        scenes = self.root / "scenes" / f"CLEVR_{split}_scenes.json"
        if not scenes.is_file():
            have = sorted(p.name for p in scenes.parent.glob("CLEVR_*_scenes.json")) if scenes.parent.is_dir() else []
            raise FileNotFoundError(f"scenes {scenes} are missing" + (f"; there are {', '.join(have)}" if have else ""))
        try:
            self.scenes = json.loads(scenes.read_text())["scenes"]
            self.names = [scene["image_filename"] for scene in self.scenes]
            self.targets = [encode(scene["objects"]) for scene in self.scenes]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"scenes {scenes} cannot be read: {error}") from error
        if not (self.root / "images" / split).is_dir():
            raise FileNotFoundError(f"folder {self.root / 'images' / split} is missing")
        self.masks = self.root / "masks" / split
        self.has_masks = self.masks.is_dir()

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"index must be from 0 to {len(self) - 1}, got {index}")
        name = self.names[index]
        item = {"image": load_image(self.root / "images" / self.split / name, self.size),
                "target": self.targets[index], "id": Path(name).stem}
        if self.has_masks:
            item["mask"] = load_image(self.masks / name, self.size, "L", Image.Resampling.NEAREST)
        return item
