"""Built-in scenes and the CLEVR reader."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image  # noqa: E402

from examples import data  # noqa: E402
from examples.data import properties  # noqa: E402
from examples.data.scenes import VISIBLE, project, shrinking  # noqa: E402

CLEVR = Path(__file__).resolve().parents[2] / "shared" / "clevr"
OBJECT = {
    "3d_coords": [0.0, 0.0, 0.7],
    "size": "large",
    "material": "rubber",
    "shape": "sphere",
    "color": "red",
    "rotation": 0.0,
}


def test_items_depend_on_seed_split_and_index_alone():
    one, two = data.open_dataset(), data.open_dataset()
    for index in (5, 0, 999_999):
        a, b = one[index], two[index]
        assert (
            all(np.array_equal(a[k], b[k]) for k in ("image", "mask", "target"))
            and a["id"] == b["id"]
        )
    pictures = [
        data.open_dataset(split=s, seed=n)[3]["image"].tobytes()
        for s in ("train", "val", "test")
        for n in (0, 1)
    ]
    assert len(set(pictures)) == 6


@pytest.mark.parametrize("size", [32, 64, 128])
def test_picture_mask_and_target_agree(size):
    scenes = data.open_dataset(size=size, max_objects=10, split="val")
    counts = set()
    for index in range(40):
        item = scenes[index]
        assert item["image"].shape == (size, size, 3) and item["image"].dtype == np.uint8
        rows = item["target"][item["target"][:, properties.REAL] == 1]
        counts.add(len(rows))
        assert set(np.unique(item["mask"])) - {0} == set(range(1, len(rows) + 1))
        assert not item["target"][len(rows) :].any()
        for i, row in enumerate(rows):
            assert [row[g].sum() for g in properties.GROUPS.values()] == [1, 1, 1, 1]
            place, _ = project(row[:3].astype(float) * 3, size)
            y, x = np.nonzero(item["mask"] == i + 1)
            reach = 0.13 * size  # a large object's, hidden in part
            assert (
                x.min() - reach <= place[0] <= x.max() + reach
                and y.min() - reach <= place[1] <= y.max() + reach
            )
    assert len(counts) >= 5


def test_many_objects_are_small_apart_and_seen():
    """They shrink as their number grows, and one that is hidden is left out."""
    assert shrinking(10) == shrinking(1) == 1 > shrinking(11) and shrinking(40) == 0.5
    scenes = data.open_dataset(size=128, min_objects=90, max_objects=90)
    scale, numbers = shrinking(90), set()
    for index in range(4):
        item = scenes[index]
        rows = item["target"][item["target"][:, properties.REAL] == 1]
        assert item["target"].shape == (90, 19) and 75 <= len(rows) <= 90
        numbers.add(len(rows))
        shown = np.bincount(item["mask"].ravel())[1:]
        assert len(shown) == len(rows) and shown.min() >= VISIBLE * (scale * 128) ** 2
        radii = np.abs(rows[:, 2:3] * 3 / scale - [0.35, 0.7])
        assert radii.min(1).max() < 1e-6 and radii.min(0).max() < 1e-6
        places = rows[:, :2].astype(float) * 3
        away = np.linalg.norm(places[:, None] - places, axis=-1) + 9 * np.eye(len(rows))
        assert away.min() > 0.9 * scale - 1e-6
    assert len(numbers) > 1


def test_the_near_object_hides_the_far_one():
    near, far = (
        {**OBJECT, "3d_coords": [0.0, y, 0.7], "color": c}
        for y, c in ((-0.7, "red"), (0.8, "cyan"))
    )
    image, mask = data.draw_scene([near, far], 64)
    alone = data.draw_scene([far], 64)[1]
    hidden = (alone == 1) & (mask == 1)
    assert hidden.sum() > 5 and (mask == 2).sum() + hidden.sum() == (alone == 1).sum()
    assert image[mask == 1].mean(0)[0] > 2 * image[mask == 1].mean(0)[2]  # red


@pytest.mark.parametrize("group", ["size", "material", "shape", "color"])
def test_every_property_can_be_seen(group):
    names = {
        "size": properties.SIZES,
        "material": properties.MATERIALS,
        "shape": properties.SHAPES,
        "color": properties.COLORS,
    }[group]
    drawn = {
        data.draw_scene(
            [{**OBJECT, group: n, "3d_coords": [0, 0, 0.35 if n == "small" else 0.7]}], 64
        )[0].tobytes()
        for n in names
    }
    assert len(drawn) == len(names)


def test_encode_by_hand():
    row = properties.encode(
        [
            {
                **OBJECT,
                "3d_coords": [3, -1.5, 0.7],
                "size": "small",
                "material": "metal",
                "shape": "cylinder",
                "color": "cyan",
            }
        ]
    )[0]
    assert np.allclose(row, [1, -0.5, 0.7 / 3, 1, 0, 0, 1, 0, 0, 1, *[0] * 7, 1, 1])
    assert properties.describe(row) == "small cyan metal cylinder"
    with pytest.raises(ValueError, match="a scene may have 10 objects, got 11"):
        properties.encode([OBJECT] * 11)
    with pytest.raises(ValueError, match="color must be one of .*, got 'pink'"):
        properties.encode([{**OBJECT, "color": "pink"}])


@pytest.mark.parametrize(
    "options, match",
    [
        ({"split": "all"}, "split must be one of"),
        ({"size": 0}, "size must be"),
        ({"size": 8}, "size must be from 16"),
        ({"max_objects": 101}, "max_objects must be in order and from 1 to 100, got 2 and 101"),
        ({"root": ".", "dataset": "scenes"}, "root must be None for the built-in scenes"),
        ({"dataset": "coco"}, "root must be the folder of coco, got None"),
        ({"dataset": "mnist"}, "dataset must be one of scenes, clevr, .*folder, got 'mnist'"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        data.open_dataset(**options)


@pytest.fixture
def clevr(tmp_path):
    """Three pictures in CLEVR's layout, with masks."""
    for folder in ("images/val", "masks/val", "scenes"):
        (tmp_path / folder).mkdir(parents=True)
    scenes = []
    for i in range(3):
        name = f"CLEVR_val_{i:06d}.png"
        image, mask = data.draw_scene([OBJECT] * (i > 0), 60)
        Image.fromarray(np.pad(image, ((0, 0), (15, 15), (0, 0)))).save(
            tmp_path / "images/val" / name
        )
        Image.fromarray(np.pad(mask, ((0, 0), (15, 15)))).save(tmp_path / "masks/val" / name)
        scenes.append({"image_filename": name, "image_index": i, "objects": [OBJECT] * (i > 0)})
    (tmp_path / "scenes/CLEVR_val_scenes.json").write_text(
        json.dumps({"info": {}, "scenes": scenes})
    )
    return tmp_path


def test_clevr(clevr):
    stored, squashed = (
        data.open_dataset(clevr, split="val"),
        data.open_dataset(clevr, "clevr", "val", 32),
    )
    assert len(stored) == 3 and [stored[i]["id"] for i in range(3)] == [
        f"CLEVR_val_{i:06d}" for i in range(3)
    ]
    assert stored[1]["image"].shape == (60, 90, 3) and stored[1]["mask"].shape == (60, 90)
    assert squashed[1]["image"].shape == (32, 32, 3) and set(np.unique(squashed[1]["mask"])) == {
        0,
        1,
    }
    assert not stored[0]["target"].any() and stored[1]["target"][0, 18] == 1
    expected = np.asarray(
        Image.open(clevr / "images/val/CLEVR_val_000001.png").resize(
            (32, 32), Image.Resampling.BILINEAR
        )
    )
    assert np.array_equal(squashed[1]["image"], expected)
    with pytest.raises(IndexError, match="from 0 to 2, got 3"):
        stored[3]


def test_clevr_with_few_objects(clevr):
    assert [item["id"][-1] for item in data.open_dataset(clevr, split="val", max_objects=0)] == [
        "0"
    ]
    assert len(data.open_dataset(clevr, split="val", max_objects=1)) == 3


def test_clevr_masks_in_disorder(clevr):
    """A palette's indices count; a missing mask, one of another shape and one in colours are errors
    that name it."""
    path = clevr / "masks/val/CLEVR_val_000001.png"
    mask = Image.open(path)
    stored = np.array(mask)
    palette = mask.copy()
    palette.putpalette([9] * 768)
    palette.save(path)
    dataset = data.open_dataset(clevr, split="val")
    assert stored.any() and np.array_equal(dataset[1]["mask"], stored)
    for odd, match in (
        (mask.resize((1, 1)), r"must have its picture's shape \(60, 90\), got \(1, 1\)"),
        (mask.convert("RGB"), "cannot be read: it has mode RGB"),
    ):
        odd.save(path)
        with pytest.raises(ValueError, match=f"mask .*CLEVR_val_000001.png {match}"):
            dataset[1]
    path.unlink()
    with pytest.raises(FileNotFoundError, match="mask .*CLEVR_val_000001.png is missing"):
        dataset[1]


def test_clevr_files_in_disorder(clevr, tmp_path_factory):
    picture = clevr / "images/val/CLEVR_val_000001.png"
    content = picture.read_bytes()
    dataset = data.open_dataset(clevr, split="val")
    picture.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="CLEVR_val_000001.png cannot be read"):
        dataset[1]
    picture.unlink()
    with pytest.raises(FileNotFoundError, match="CLEVR_val_000001.png is missing"):
        dataset[1]
    with pytest.raises(
        FileNotFoundError,
        match="CLEVR_train_scenes.json are missing; there are CLEVR_val_scenes.json",
    ):
        data.open_dataset(clevr, split="train")
    scenes = clevr / "scenes/CLEVR_val_scenes.json"
    scenes.write_text(scenes.read_text()[:100])
    with pytest.raises(ValueError, match="CLEVR_val_scenes.json cannot be read"):
        data.open_dataset(clevr, split="val")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ValueError, match="layout of no known data set"):
        data.open_dataset(empty)
    with pytest.raises(FileNotFoundError, match="is missing"):
        data.open_dataset(empty / "nowhere")


@pytest.mark.skipif(not CLEVR.is_dir(), reason="needs ../shared/clevr beside the checkout")
def test_rendered_clevr():
    dataset = data.open_dataset(CLEVR, split="val", size=128)
    assert len(dataset) == 200
    item = dataset[7]
    objects = int(item["target"][:, 18].sum())
    assert (
        item["image"].shape == (128, 128, 3)
        and 3 <= objects <= 10
        and item["mask"].max() <= objects
    )
    assert np.abs(item["target"][:objects, :3]).max() <= 1.1
