"""Data sets of a few random pictures in their official layouts, for the tests of the readers.

Each function writes below `root` and returns {id: (picture, mask)} as they are stored.
"""

import gzip
import json

import numpy as np
from PIL import Image

from examples.data.tfrecord import masked_crc

OBJECT = {
    "3d_coords": [1.5, -0.75, 0.7],
    "size": "large",
    "material": "rubber",
    "shape": "sphere",
    "color": "red",
}


def picture(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def labels(seed, height, width, objects=3):
    return np.random.default_rng(seed + 1000).integers(
        0, objects + 1, (height, width), dtype=np.uint8
    )


def save(array, path, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    image = image if mode is None else image.convert(mode)
    image.save(path, "PNG" if path.suffix == ".map" else None)


def clevr_mirror(root, count=6):
    """Scene i has i objects; odd pictures are RGBA."""
    found = {}
    for i in range(count):
        found[f"mirror_{i:03d}"] = picture(i, 40, 60), None
        save(picture(i, 40, 60), root / f"images/mirror_{i:03d}.png", "RGBA" if i % 2 else None)
        scene = root / f"scenes/mirror_{i:03d}.json"
        scene.parent.mkdir(exist_ok=True)
        scene.write_text(json.dumps({"objects": [OBJECT] * i}))
    return found


def shapestacks(root):
    """train: two scenarios, the first with two cameras; test: one, whose list has no final
    newline."""
    stacks = {
        "train": {
            "env_ccs-easy-h=2-vcom=0-vpsf=0-v=7": (3, 12),
            "env_blocks-hard-h=3-vcom=1-vpsf=0-v=1": (1,),
        },
        "test": {"env_ccs-hard-h=2-vcom=0-vpsf=1-v=2": (5,)},
    }
    found = {}
    for split, scenarios in stacks.items():
        listed = root / f"splits/default/{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("\n".join(scenarios))
        for scenario, cameras in scenarios.items():
            for camera in cameras:
                folder = root / "recordings" / scenario
                path = f"recordings/{scenario}/rgb-w=1-f=2-l=0-c=unique-cam_{camera}-mono-0.png"
                image, mask = picture(len(found), 224, 224), labels(len(found), 224, 224, 6)
                save(image, root / path)
                noise = 31 * (
                    picture(len(found), 224, 224)[..., 0] & 1
                )  # not always a multiple of 32
                stored = np.stack(
                    [mask * 32 + noise, 255 - mask, mask], axis=2
                )  # the other channels mean nothing
                save(stored, folder / f"iseg-w=0-f=0-l=0-c=original-cam_{camera}-mono-0.map")
                save(stored[::-1], folder / f"vseg-w=0-f=0-l=0-c=original-cam_{camera}-mono-0.map")
                found[path] = image, mask
    return found


def clevrtex(root, count=10, variant="full"):
    found = {}
    for i in range(count):
        path = root / f"clevrtex_{variant}/{i // 5}/CLEVRTEX_{variant}_{i:06d}.png"
        image, mask = picture(i, 24, 32), labels(i, 24, 32)
        save(image, path, "RGBA" if i % 2 else None)
        save(image[..., 0], path.with_name(f"{path.stem}_depth_0001.png"))
        palette = Image.fromarray(mask)
        palette.putpalette([7] * 768)  # every colour is the same: the index counts
        palette.save(path.with_name(f"{path.stem}_flat.png"))
        found[path.stem] = image, mask
    return found


def coco(root, split="val"):
    """Picture 42 (grey) has two polygons that overlap, picture 7 a crowd as run lengths, picture 9
    nothing. In this order."""
    sizes = {42: (20, 30), 7: (30, 20), 9: (25, 25)}
    square = [[2, 3, 12, 3, 12, 13, 2, 13]]
    two_parts = [[8, 8, 20, 8, 20, 18, 8, 18], [24, 1, 28, 1, 28, 5, 24, 5]]
    outlines = [
        (5, 42, square, 0),
        (3, 42, two_parts, 0),
        (4, 7, {"size": [30, 20], "counts": [35, 10, 20, 10, 525]}, 1),
    ]
    found = {}
    for number, (height, width) in sizes.items():
        image, mask = picture(number, height, width), np.zeros((height, width), int)
        path = root / f"{split}2017/{number:012d}.jpg"
        save(image, path, "L" if number == 42 else None)
        found[path.stem] = np.array(Image.open(path).convert("RGB")), mask
    first = found[f"{42:012d}"][1]
    first[8:18, 8:20], first[1:5, 24:28] = 2, 2
    first[3:13, 2:12] = 1
    down_the_columns = np.zeros(600, int)
    down_the_columns[35:45] = down_the_columns[65:75] = 1
    found[f"{7:012d}"] = found[f"{7:012d}"][0], down_the_columns.reshape(20, 30).T
    content = {
        "images": [
            {"id": n, "file_name": f"{n:012d}.jpg", "height": h, "width": w}
            for n, (h, w) in sizes.items()
        ],
        "annotations": [
            {"id": a, "image_id": n, "segmentation": s, "iscrowd": c, "category_id": 1}
            for a, n, s, c in outlines
        ],
    }
    annotations = root / f"annotations/instances_{split}2017.json"
    annotations.parent.mkdir(parents=True, exist_ok=True)
    annotations.write_text(json.dumps(content))
    return found


def clevr_with_masks(root, count=3):
    """Record i has i + 1 objects, in stripes."""
    found, contents = {}, []
    for i in range(count):
        image, mask = (
            picture(i, 240, 320),
            np.repeat(np.arange(320) * (i + 2) // 320, 240).reshape(320, 240).T,
        )
        masks = np.uint8(255) * (mask == np.arange(11)[:, None, None])
        visibility = (np.arange(11) < i + 2).astype("<f4")
        contents.append(
            example(
                {
                    "mask": ones(masks),
                    "visibility": packed(visibility),
                    "image": ones(image),
                    "x": packed(np.zeros(11, "<f4")),
                }
            )
        )
        found[str(i)] = image, mask
    root.mkdir(exist_ok=True)
    (root / "clevr_with_masks_train.tfrecords").write_bytes(
        gzip.compress(b"".join(map(record, contents)), 1)
    )
    return found


def record(content):
    header = len(content).to_bytes(8, "little")
    return (
        header
        + masked_crc(header).to_bytes(4, "little")
        + content
        + masked_crc(content).to_bytes(4, "little")
    )


def field(number, content):
    """A field with bytes of a protocol buffer's message."""
    size, length = len(content), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def example(features):
    return field(
        1,
        b"".join(
            field(1, field(1, name.encode()) + field(2, value)) for name, value in features.items()
        ),
    )


def ones(array):
    """A feature with a list of strings of one byte each."""
    flat = array.reshape(-1, 1)
    return field(
        1, np.concatenate([np.full_like(flat, 10), np.full_like(flat, 1), flat], axis=1).tobytes()
    )


def packed(array):
    return field(2, field(1, array.tobytes()))
