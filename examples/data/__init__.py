"""Data sets of the examples: `open_dataset` gives indexable sets of dicts.

item["image"]   (H, W, 3) uint8, RGB
item["mask"]    (H, W) integers, 0 the background, i the i-th object; where the data set has masks
item["target"]  (10, 19) float32, see `properties`; rows of zeros where there is no object
item["id"]      str
"""

from __future__ import annotations

from pathlib import Path

from . import properties
from .clevr import Clevr, load_image
from .scenes import Scenes, draw_objects, draw_scene

__all__ = ["Clevr", "Scenes", "draw_objects", "draw_scene", "load_image", "open_dataset", "properties"]

READERS = ("scenes", "clevr")


def open_dataset(root=None, dataset=None, split="train", size=None, **options):
    """Open a data set.

    Parameters
    ----------
    root : path of the data set's folder; None for the built-in scenes.
    dataset : "scenes" or "clevr"; None: told by the layout of `root`.
    split : str. size : int, optional; None gives pictures as they are stored.
    options : of the reader; see `Scenes`.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file or folder, or the data set that is not known.
    """
    if dataset is None:
        dataset = "scenes" if root is None else _told_by_layout(Path(root))
    if dataset not in READERS:
        raise ValueError(f"dataset must be one of {', '.join(READERS)}, got {dataset!r}")
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"size must be an int of at least 1, got {size!r}")
    if dataset == "scenes":
        return Scenes(split, size, **options)
    if root is None:
        raise ValueError(f"root must be the folder of {dataset}, got None")
    return Clevr(root, split, size, **options)


def _told_by_layout(root):
    if not root.is_dir():
        raise FileNotFoundError(f"folder {root} is missing")
    if any((root / "scenes").glob("CLEVR_*_scenes.json")):
        return "clevr"
    raise ValueError(f"{root} has the layout of no known data set ({', '.join(READERS)}); "
                     "name it with `dataset`")
