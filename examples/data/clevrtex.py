"""Reader of ClevrTex (Karazija et al. 2021) in its official layout.

    ROOT/clevrtex_<variant>/<index // 1000>/CLEVRTEX_<variant>_000000.png        320 x 240
    ROOT/clevrtex_<variant>/<index // 1000>/CLEVRTEX_<variant>_000000_flat.png   its mask: a
    palette,
                                           index i is the i-th object, 0 the background

Variants are full, pbg, vbg, grassbg, camo and outd; ROOT may also be a variant's own folder.
Source: https://www.robots.ox.ac.uk/~vgg/data/clevrtex.
"""

from __future__ import annotations

from .reader import Reader, centre, load_image, load_labels, middle, nearest

SPLITS = {"train": (0.2, 1.0), "val": (0.1, 0.2), "test": (0.0, 0.1)}
CROP = 0.8


class ClevrTex(Reader):
    """ClevrTex, in the order of the pictures' numbers.

    Splits and crop are those of the official reader, `clevrtex_eval.py` of
    https://github.com/karazijal/clevrtex-generation: of n pictures, test is [0, int(0.1 n)), val
    [int(0.1 n), int(0.2 n)), train the rest; outd is not split. With `size` the central square of
    0.8 of the shorter side (192) is resized to size x size, bilinear (Pillow) and nearest.
    `variant` None: told by the folder, which must then have one.
    """

    name = "clevrtex"
    takes = ("variant",)
    official = tuple(SPLITS)
    known = official

    def open(self):
        self.folder, self.variant = _folder(self.root, self.options["variant"])
        start = f"CLEVRTEX_{self.variant}_"
        found = self.folder.rglob(f"{start}{'[0-9]' * 6}.png")
        pictures = {int(path.stem[-6:]): path for path in found}
        if not pictures:
            raise FileNotFoundError(f"{self.folder} has no picture {start}??????.png")
        absent = sorted(set(range(max(pictures))) - set(pictures))
        if absent:  # the splits are shares of the numbers, so they would shift
            raise FileNotFoundError(
                f"{len(absent)} pictures are missing in {self.folder}, "
                f"the first is {start}{absent[0]:06d}.png"
            )
        low, high = (0.0, 1.0) if self.variant == "outd" else SPLITS[self.split]
        n = len(pictures)
        self.pictures = [pictures[i] for i in range(int(low * n), int(high * n))]
        self.ids = [path.stem for path in self.pictures]

    @staticmethod
    def fits(root):
        return bool(_variants(root))

    @staticmethod
    def part(height, width):
        return middle(height, width, int(CROP * min(height, width)))

    def files(self):
        return [path for picture in self.pictures for path in (picture, _mask(picture))]

    def read(self, index):
        path = self.pictures[index]
        image = load_image(path)
        mask = load_labels(_mask(path), image)
        if self.size is not None:
            side = int(CROP * min(mask.shape))
            image = self.prepare(image, self.size, path)
            mask = nearest(centre(mask, side, side, path), self.size, self.size)
        return {"image": image, "mask": mask}


def _mask(picture):
    return picture.with_name(f"{picture.stem}_flat.png")


def _variants(root):
    """Folder of each variant below, or at, the root."""
    folders = [root] if root.name.startswith("clevrtex_") else sorted(root.glob("clevrtex_*/"))
    return {folder.name.removeprefix("clevrtex_"): folder for folder in folders}


def _folder(root, variant):
    have = _variants(root)
    if variant is None and len(have) == 1:
        variant = next(iter(have))
    if variant is None and have:
        raise ValueError(f"variant must be one of {', '.join(have)}, got None")
    if variant not in have:
        raise FileNotFoundError(f"folder {root}/clevrtex_{variant or '*'} is missing")
    return have[variant], variant
