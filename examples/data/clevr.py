"""Reader of CLEVR v1.0 (Johnson et al. 2017) in its official layout.

    ROOT/images/<split>/CLEVR_<split>_000000.png   480 x 320 (any size is read)
    ROOT/scenes/CLEVR_<split>_scenes.json          objects: "3d_coords", "size", "material", ...
    ROOT/masks/<split>/CLEVR_<split>_000000.png    optional, not official; 8 bit: i is the i-th
                                                   object, 0 the background

The official splits are train (70,000), val (15,000) and test (15,000), which has no scenes and so
is not read here. Source: https://cs.stanford.edu/people/jcjohns/clevr.
"""

from __future__ import annotations

from pathlib import Path

from .fields import load_json, take
from .properties import encode
from .reader import Reader, bilinear, load_image, load_labels, nearest, there_are


class Clevr(Reader):
    """CLEVR with properties, in the order of the scenes' file, objects too.

    With `size` the whole picture is squashed to size x size, as in the set prediction of Slot
    Attention (`slot_attention/data.py` of google-research) and of the Slot Mixture Module.
    `max_objects` leaves out scenes with more.
    """

    name = "clevr"
    takes = ("max_objects",)
    official = ("train", "val")

    def open(self):
        self.scenes = self.root / "scenes" / f"CLEVR_{self.split}_scenes.json"
        if not self.scenes.is_file():
            have = [f"CLEVR_{s}_scenes.json" for s in self.splits(self.root)]
            raise FileNotFoundError(f"scenes {self.scenes} are missing{there_are(have)}")
        self.names, self.targets = [], []
        scenes = take(load_json(self.scenes, "scenes"), "scenes", list, f"scenes {self.scenes}")
        for number, scene in enumerate(scenes):
            what = f"scene {number} of {self.scenes}"
            name, target = take(scene, "image_filename", str, what), target_of(self, scene, what)
            if target is not None:
                self.names.append(name)
                self.targets.append(target)
        self.images, self.masks = (self.root / name / self.split for name in ("images", "masks"))
        if not self.images.is_dir():
            raise FileNotFoundError(f"folder {self.images} is missing")
        self.has_masks = self.masks.is_dir()
        self.ids = [Path(name).stem for name in self.names]

    @staticmethod
    def splits(root):
        return sorted(p.name[6:-12] for p in (root / "scenes").glob("CLEVR_*_scenes.json"))

    fits = splits

    def files(self):
        folders = [self.images, self.masks] if self.has_masks else [self.images]
        return [self.scenes] + [folder / name for name in self.names for folder in folders]

    def read(self, index):
        image = load_image(self.images / self.names[index])
        item = {"image": image, "target": self.targets[index]}
        if self.has_masks:
            item["mask"] = load_labels(self.masks / self.names[index], image)
        return squash(item, self.size)


def target_of(reader, scene, what):
    """The properties of a scene's objects; None where there are too many. Errors name `what`."""
    objects = take(scene, "objects", list, what)
    try:
        return None if reader.too_many(len(objects)) else encode(objects)
    except ValueError as error:
        raise ValueError(f"{what} cannot be read: {error}") from error


def squash(item, size):
    """The item with its whole picture and mask at size x size, or as it is without a size."""
    if size is not None:
        item["image"] = bilinear(item["image"], size, size)
        if "mask" in item:
            item["mask"] = nearest(item["mask"], size, size)
    return item
