"""Reader of a bare folder of pictures: ROOT/*.png (jpg, ...), or ROOT/<split>/*.png."""

from __future__ import annotations

from .reader import Reader, bilinear, centre, load_image, middle, one_of, short_side

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

SPLITS = ("train", "val", "test")


class Folder(Reader):
    """Pictures of one folder, sorted by name.

    They are those of ROOT/<split> where that is a folder, else those of ROOT for any of train, val
    and test. With `size` the shorter side is resized to `size` (bilinear) and the middle cropped,
    so that nothing is squashed.
    """

    name = "folder"

    def open(self):
        folder = self.folder(self.root, self.split)
        if folder == self.root:
            one_of("split", self.split, SPLITS)
        self.pictures = pictures_in(folder)
        if not self.pictures:
            raise FileNotFoundError(f"{folder} has no picture ({', '.join(SUFFIXES)})")
        self.ids = [path.stem for path in self.pictures]

    @staticmethod
    def folder(root, split):
        """Where the pictures of a split are."""
        return root / split if (root / split).is_dir() else root

    @staticmethod
    def splits(root):
        return [s for s in SPLITS if (root / s).is_dir()] or ["train"]

    @staticmethod
    def fits(root):
        return any(pictures_in(folder) for folder in (root, *(root / split for split in SPLITS)))

    @staticmethod
    def part(height, width):
        return middle(height, width, min(height, width))

    @classmethod
    def prepare(cls, image, size, path):
        return fit(image, size, bilinear, path)

    def files(self):
        return self.pictures

    def read(self, index):
        path = self.pictures[index]
        return {"image": self.prepare(load_image(path), self.size, path)}


def fit(array, size, resize, path):
    """The shorter side at `size` and the middle cropped to size x size; as it is without a size."""
    if size is None:
        return array
    return centre(resize(array, *short_side(array, size)), size, size, path)


def pictures_in(folder):
    """Paths of a folder's pictures, sorted by name."""
    if not folder.is_dir():
        return []
    pictures = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    return sorted(p for p in pictures if not p.name.startswith("."))
