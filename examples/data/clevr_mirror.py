"""Reader of CLEVR-Mirror (Singh et al. 2022, SLATE).

    ROOT/images/<stem>.png     any size, RGB or RGBA
    ROOT/scenes/<stem>.json    one scene a picture, with CLEVR's objects

No official description of the layout was found; this is the one of the public loader,
`datasets/clevrmirror.py` of https://github.com/Skvayzer/slot-attention-atari. Pictures without
scenes are read as a `folder`.
"""

from __future__ import annotations

from .clevr import squash, target_of
from .fields import load_json
from .reader import Reader, load_image


class ClevrMirror(Reader):
    """CLEVR-Mirror, sorted by name (the public loader takes the directory's order).

    No official split was found; val is the first fifth, as in the validation of that repository
    (its training draws a fifth at random), train the rest, all both. With `size` the whole picture
    is squashed to size x size, as there. `max_objects` leaves out scenes with more, before the
    split.
    """

    name = "clevr_mirror"
    takes = ("max_objects",)
    official = ("train", "val", "all")
    known = official

    def open(self):
        self.images = self.root / "images"
        for folder in (self.images, self.root / "scenes"):
            if not folder.is_dir():
                raise FileNotFoundError(f"folder {folder} is missing")
        paths = sorted((self.root / "scenes").glob("*.json"))
        targets = (target_of(self, load_json(path, "scene"), f"scene {path}") for path in paths)
        scenes = [pair for pair in zip(paths, targets) if pair[1] is not None]
        fifth = len(scenes) // 5
        scenes = {"val": scenes[:fifth], "train": scenes[fifth:], "all": scenes}[self.split]
        self.scenes = [path for path, _ in scenes]
        self.targets = [target for _, target in scenes]
        self.ids = [path.stem for path in self.scenes]

    @staticmethod
    def fits(root):
        return (root / "images").is_dir() and any((root / "scenes").glob("*.json"))

    def files(self):
        return self.scenes + [self.images / f"{stem}.png" for stem in self.ids]

    def read(self, index):
        image = load_image(self.images / f"{self.ids[index]}.png")
        return squash({"image": image, "target": self.targets[index]}, self.size)
