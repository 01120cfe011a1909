"""Data sets of the examples: `open_dataset` gives indexable sets of dicts.

item["image"]   (H, W, 3) uint8, RGB
item["mask"]    (H, W) integers, 0 the background, i the i-th object; where the data set has masks
item["target"]  (10, 19) float32, see `properties`, zeros without an object; where it has properties
item["id"]      str
"""

from __future__ import annotations

from pathlib import Path

from . import properties
from .cache import cached
from .clevr import Clevr
from .clevr_mirror import ClevrMirror
from .clevr_with_masks import ClevrWithMasks
from .clevrtex import ClevrTex
from .coco import Coco
from .folder import Folder
from .reader import load_image, one_of
from .scenes import Scenes, draw_objects, draw_scene
from .shapestacks import ShapeStacks

__all__ = [
    "READERS",
    "Scenes",
    "draw_objects",
    "draw_scene",
    "checked_size",
    "find_reader",
    "load_image",
    "open_dataset",
    "open_reader",
    "properties",
]

MOST_PIXELS = 2**15  # along a side

# in the order in which a folder's layout is asked for; a bare folder fits almost anything and comes
# last
CLASSES = Clevr, ClevrWithMasks, ClevrMirror, ShapeStacks, ClevrTex, Coco, Folder
READERS = {reader.name: reader for reader in CLASSES}


def open_dataset(root=None, dataset=None, split="train", size=None, *, cache=None, **options):
    """Open a data set.

    Parameters
    ----------
    root : path of the data set's folder; None for the built-in scenes.
    dataset : "scenes" or a name of `READERS`; None: told by the layout of `root`.
    split : str
    size : int, optional. None gives pictures as they are stored, else the data set's own crop and
        resize to size x size (see its reader).
    cache : path of a folder for decoded pictures, in files of their own for each data set, split
        and size; see `cache.cached`. Every picture is then read once beforehand, and one that
        cannot be read is left out with a warning. None: pictures are decoded each time, and one
        that cannot be read is an error that names its file. "clevr_with_masks" always has a cache,
        with None a temporary one.
    options : what the reader `takes` (`max_objects`, `variant`), or the arguments of `Scenes`.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file or folder, or the data set that is not known.
    ImportError
        For "coco" without pycocotools.
    """
    if root is None and dataset in (None, "scenes"):
        if cache is not None:
            raise ValueError(f"cache must be None for the built-in scenes, got {cache!r}")
        return Scenes(split, checked_size(size), **options)
    reader = open_reader(root, dataset, split, size, **options)
    return reader if cache is None and reader.ids is not None else cached(reader, cache)


def open_reader(root, dataset=None, split="train", size=None, **options):
    """The reader of a data set in files; arguments and errors as of `open_dataset`."""
    return find_reader(root, dataset)(root, split, checked_size(size), **options)


def find_reader(root, dataset=None):
    """The class that reads `dataset`, or the one that the layout of `root` fits."""
    if dataset is not None:
        one_of("dataset", dataset, ("scenes", *READERS))
    if dataset == "scenes":
        raise ValueError(f"root must be None for the built-in scenes, got {str(root)!r}")
    if root is None:
        raise ValueError(f"root must be the folder of {dataset}, got None")
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"folder {root} is missing")
    if dataset is not None:
        return READERS[dataset]
    for reader in READERS.values():
        if reader.fits(root):
            return reader
    known = ", ".join(READERS)
    raise ValueError(f"{root} has the layout of no known data set ({known}); give its `dataset`")


def checked_size(size):
    """Of pictures, or None; ValueError for what is none."""
    if size is not None and (not isinstance(size, int) or not 1 <= size <= MOST_PIXELS):
        raise ValueError(f"size must be an int from 1 to {MOST_PIXELS}, got {size!r}")
    return size
