"""Command line of the data sets; `python -m examples.data inspect --help`."""

from __future__ import annotations

import argparse
from colorsys import hsv_to_rgb
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..shared.files import write_atomically
from . import READERS, checked_size, find_reader
from .properties import REAL

EXAMPLES = """\
examples, from the repository's root:
  # what a folder holds, and its first picture with masks in inspect.png
  python -m examples.data inspect CLEVR_v1.0
  # read every picture of the validation split, as a pipeline at 64 x 64 does
  python -m examples.data inspect photos/ --dataset folder --split val --size 64 --check
"""
MOST_NAMED = 5  # files that a list names before it says "and so many more"


def parser():
    shown = {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    main = argparse.ArgumentParser(
        prog="python -m examples.data", description="Look into data sets.", **shown
    )
    inspect = main.add_subparsers(dest="command", required=True).add_parser(
        "inspect",
        help="what a folder holds, what is missing, and one picture with its masks",
        description="Tell what a folder holds and what is missing; draw a picture with its masks.",
        **shown,
    )
    add = inspect.add_argument
    add("dir", type=Path, help="folder of a data set in its official layout, or of pictures")
    what = "which data set it is, where the folder does not tell"
    add("--dataset", choices=tuple(READERS), help=what)
    add("--split", help="default: the first that can be opened and has a picture")
    add("--size", type=int, help="as the pipelines read it, at this size (default: as stored)")
    what = "read every picture of the split and list those that cannot be"
    add("--check", action="store_true", help=what)
    what = "picture to write (default: inspect.png)"
    add("--out", type=Path, default=Path("inspect.png"), help=what)
    return main


def main(arguments=None):
    command_line = parser()
    options = command_line.parse_args(arguments)
    try:
        inspect(options)
    except (OSError, ValueError, ImportError) as error:
        command_line.exit(2, f"error: {error}\n")


def inspect(options):
    checked_size(options.size)
    kind = find_reader(options.dir, options.dataset)
    say("data set", kind.name + ("" if options.dataset else ", told by the layout"))
    say("folder", options.dir)
    reader = _open(kind, options)
    first = _tell_stream(reader) if reader.ids is None else _tell_files(reader, options.check)
    if first is None:
        return
    shape = " x ".join(map(str, first["image"].shape))
    say("picture", f"{first['id']}, {shape}" + (" as stored" if options.size is None else ""))
    masks = len(np.unique(first["mask"][first["mask"] > 0])) if "mask" in first else None
    properties = int(first["target"][:, REAL].sum()) if "target" in first else None
    for what, objects in (("masks", masks), ("properties", properties)):
        say(what, "none" if objects is None else f"{objects} objects in this picture")
    draw(first, options.out)
    say("drawn", options.out)


def say(what, value):
    print(f"{what:<11} {value}")


def _open(kind, options):
    """The reader of the split asked for, or of the first with a picture; tells all splits."""
    readers = {}
    for split in dict.fromkeys((*kind.official, *kind.splits(options.dir))):
        try:
            readers[split] = reader = kind(options.dir, split, options.size)
            stream = reader.ids is None
            say(f"  {split}", "a stream, not counted" if stream else f"{len(reader)} pictures")
        except (OSError, ValueError) as error:
            say(f"  {split}", f"cannot be opened: {error}")
    full = (name for name, reader in readers.items() if reader.ids is None or len(reader))
    split = options.split or next(full, "train")
    say("split", split)
    return readers[split] if split in readers else kind(options.dir, split, options.size)


def _tell_stream(reader):
    """Read a stream to its end, which checks it; returns its first item."""
    first, count = None, 0
    for item in tqdm(reader, desc="records", disable=None, leave=False):
        first, count = first or item, count + 1
    say("read", f"{count} pictures, none damaged")
    return first


def _tell_files(reader, check):
    """What is missing and, with `check`, what cannot be read; the first item that can be."""
    missing = [path for path in reader.files() if not path.is_file()]
    say("missing", _named([str(path) for path in missing], "files"))
    first, read, errors = None, 0, []
    quiet = None if check else True
    for index in tqdm(range(len(reader)), desc="pictures", disable=quiet, leave=False):
        try:
            item = reader[index]
            first, read = first or item, read + 1
        except (OSError, ValueError) as error:
            errors.append(str(error))
        if first and not check:
            break
    if check or not first:
        say("read", f"{read} of {len(reader)} pictures; unreadable: {_named(errors, 'pictures')}")
    return first


def _named(names, what):
    if not names:
        return "none"
    more = f"\n  and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{len(names)} {what}" + "".join(f"\n  {name}" for name in names[:MOST_NAMED]) + more


def draw(item, path):
    """Write a PNG file: the picture and, beside it, its mask, an object a colour."""
    panels = [item["image"]]
    if "mask" in item:
        panels.append(colours(item["mask"]))
    sheet = np.concatenate(panels, axis=1)
    scale = max(1, 256 // len(sheet))
    sheet = Image.fromarray(sheet.repeat(scale, 0).repeat(scale, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: sheet.save(file, "PNG"))


def colours(mask):
    """(H, W, 3) uint8 of a mask: hues a golden section apart, as neighbours then differ most."""
    table = [(0, 0, 0)] + [hsv_to_rgb(0.618034 * i % 1, 0.7, 0.95) for i in range(int(mask.max()))]
    return (255 * np.array(table) + 0.5).astype(np.uint8)[mask]


if __name__ == "__main__":
    main()
