"""Readers of data sets in files: miniatures in the official layouts, and files in disorder."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("tqdm")
import miniature  # noqa: E402
from PIL import Image  # noqa: E402

from examples import data  # noqa: E402
from examples.data import clevr_with_masks, tfrecord  # noqa: E402
from examples.data.coco import _run_lengths  # noqa: E402
from examples.data.reader import load_labels  # noqa: E402
from examples.data.shapestacks import is_unstable  # noqa: E402

SHARED = Path(__file__).resolve().parents[2] / "shared" / "fixtures"


def resized(array, size, resample=Image.Resampling.BILINEAR):
    return np.array(Image.fromarray(array).resize((size, size), resample))


def check(dataset, expected):
    """The data set has just these pictures and masks, in this order."""
    assert [item["id"] for item in dataset] == list(expected)
    for item, (image, mask) in zip(dataset, expected.values()):
        assert item["image"].dtype == np.uint8 and np.array_equal(item["image"], image)
        assert ("mask" in item) == (mask is not None)
        assert mask is None or np.array_equal(item["mask"], mask)


# -- TFRecord ----------------------------------------------------------------------------------


def plain_crc32c(data):
    """The definition, bit by bit."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def test_crc32c():
    # RFC 3720, B.4, and the usual check value
    assert tfrecord.crc32c(b"123456789") == 0xE3069283
    assert tfrecord.crc32c(bytes(32)) == 0x8A9136AA and tfrecord.crc32c(b"\xff" * 32) == 0x62A8AB43
    data = np.random.default_rng(0).bytes(5000)
    for size in (0, 1, 2, 3, 4, 507, 508, 509, 1020, 1021, 2043, 2044, 5000):
        assert tfrecord.crc32c(data[:size]) == plain_crc32c(data[:size]), size


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_records(tmp_path, pack):
    contents = [b"", b"one", bytes(3000)]
    path = tmp_path / "some.tfrecords"
    path.write_bytes(pack(b"".join(map(miniature.record, contents))))
    assert list(tfrecord.records(path)) == list(enumerate(contents))
    assert (
        list(tfrecord.records(path, 1, 2)) == [(1, b"one")]
        and list(tfrecord.records(path, 3)) == []
    )


def test_a_record_as_written_by_hand(tmp_path):
    """The bytes of TensorFlow's TFRecordWriter for b"abc"; checksums by the definition."""
    length = (3).to_bytes(8, "little")

    def masked(data):
        crc = plain_crc32c(data)
        return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(
            4, "little"
        )

    path = tmp_path / "some.tfrecords"
    path.write_bytes(length + masked(length) + b"abc" + masked(b"abc"))
    assert list(tfrecord.records(path)) == [(0, b"abc")]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("at", [-1, -5, -30, 25])
def test_a_cut_file(tmp_path, pack, at):
    path = tmp_path / "some.tfrecords"
    whole = pack(miniature.record(b"first") + miniature.record(np.random.default_rng(0).bytes(100)))
    path.write_bytes(whole[:at])
    with pytest.raises(ValueError, match=r"some\.tfrecords is cut or damaged at record [012]: "):
        list(tfrecord.records(path))
    if pack is bytes and at < 0:  # also where the record is one that is passed over
        with pytest.raises(
            ValueError, match=f"at record 1: it should have 104 bytes, got {104 + at}"
        ):
            list(tfrecord.records(path, 2))


@pytest.mark.parametrize(
    "at, what", [(0, "length"), (9, "length"), (13, "content"), (-1, "content")]
)
def test_wrong_checksums(tmp_path, at, what):
    damaged = bytearray(miniature.record(b"something"))
    damaged[at] ^= 1
    path = tmp_path / "some.tfrecords"
    path.write_bytes(miniature.record(b"good") + damaged)
    with pytest.raises(ValueError, match=f"at record 1: wrong checksum of the {what}"):
        list(tfrecord.records(path))


def test_examples():
    pixels = np.array([3, 0, 10, 1, 0], np.uint8)
    floats = np.array([1.5, -2, 0], "<f4")
    one_by_one = miniature.field(2, b"".join(b"\x0d" + f.tobytes() for f in floats))
    content = miniature.example(
        {
            "ones": miniature.ones(pixels),
            "other": miniature.field(3, b""),
            "packed": miniature.packed(floats),
            "strings": miniature.field(1, miniature.field(1, b"ab\0") + miniature.field(1, b"c")),
            "floats": one_by_one,
            "triple": miniature.field(1, miniature.field(1, b"\n")),
        }
    )
    found = tfrecord.parse_example(content, ("floats", "packed", "strings", "ones", "triple"))
    assert found["ones"].dtype == np.uint8 and np.array_equal(found["ones"], pixels)
    assert found["strings"].tobytes() == b"ab\0c" and found["triple"].tobytes() == b"\n"
    for name in ("packed", "floats"):
        assert found[name].dtype == np.float32 and np.array_equal(found[name], floats)
    with pytest.raises(ValueError, match="no feature absent, gone"):
        tfrecord.parse_example(content, ("absent", "ones", "gone"))
    with pytest.raises(ValueError, match="neither bytes nor floats"):
        tfrecord.parse_example(content, ("other",))
    for broken in (content[:-1], b"\x0a\xff", b"\x08\x01", b"\xff" * 12):
        with pytest.raises(ValueError, match="a field|a number"):
            tfrecord.parse_example(broken, ("ones",))


def test_clevr_with_masks(tmp_path, monkeypatch):
    expected = miniature.clevr_with_masks(tmp_path, 3)
    monkeypatch.setattr(
        clevr_with_masks,
        "SPLITS",
        {"train": (0, 2), "val": (2, 9), "test": (9, None), "all": (0, None)},
    )
    check(data.open_dataset(tmp_path, split="all"), expected)
    check(data.open_dataset(tmp_path), dict(list(expected.items())[:2]))
    check(data.open_dataset(tmp_path, "clevr_with_masks", "val"), {"2": expected["2"]})
    assert len(data.open_dataset(tmp_path, split="test")) == 0
    check(data.open_dataset(tmp_path, split="all", max_objects=2), dict(list(expected.items())[:2]))
    cropped = {
        number: (
            resized(image[29:221, 64:256], 32),
            resized(mask[29:221, 64:256].astype(np.uint8), 32, Image.Resampling.NEAREST),
        )
        for number, (image, mask) in expected.items()
    }
    check(data.open_dataset(tmp_path, split="all", size=32), cropped)


def test_clevr_with_masks_in_disorder(tmp_path):
    path = tmp_path / "clevr_with_masks_train.tfrecords"
    with pytest.raises(FileNotFoundError, match="clevr_with_masks_train.tfrecords is missing"):
        data.open_dataset(tmp_path, "clevr_with_masks")
    path.write_bytes(
        miniature.record(miniature.example({"image": miniature.ones(np.zeros(9, np.uint8))}))
    )
    with pytest.raises(
        ValueError,
        match="record 0 of .*_train.tfrecords cannot be read: no feature mask, visibility",
    ):
        data.open_dataset(tmp_path)
    with pytest.raises(
        ValueError, match=r"feature image must have shape \(240, 320, 3\), got 9 numbers"
    ):
        clevr_with_masks.decode(
            miniature.example({"image": miniature.ones(np.zeros(9, np.uint8))}), ("image",)
        )
    with pytest.raises(ValueError, match="feature image must hold bytes, got float32"):
        clevr_with_masks.decode(
            miniature.example({"image": miniature.packed(np.zeros(240 * 320 * 3, "<f4"))}),
            ("image",),
        )
    with pytest.raises(ValueError, match="split must be one of train, val, test, all, got 'eval'"):
        data.open_dataset(tmp_path, split="eval")
    length = (2**63).to_bytes(8, "little")
    path.write_bytes(length + tfrecord.masked_crc(length).to_bytes(4, "little"))
    with pytest.raises(ValueError, match="record 0: it should have 9223372036854775808 bytes"):
        data.open_dataset(tmp_path)


# -- the formats -------------------------------------------------------------------------------


def test_clevr_mirror(tmp_path):
    expected = miniature.clevr_mirror(tmp_path)
    everything = list(expected.items())
    check(data.open_dataset(tmp_path, split="all"), expected)
    check(data.open_dataset(tmp_path, "clevr_mirror", "val"), dict(everything[:1]))
    check(data.open_dataset(tmp_path), dict(everything[1:]))
    few = data.open_dataset(tmp_path, split="all", size=16, max_objects=2)
    check(few, {name: (resized(image, 16), None) for name, (image, _) in everything[:3]})
    assert [int(item["target"][:, 18].sum()) for item in few] == [0, 1, 2]
    assert np.allclose(few[1]["target"][0, :5], [0.5, -0.25, 0.7 / 3, 0, 1])
    (tmp_path / "scenes/mirror_004.json").write_text('{"objects": [{}]}')
    with pytest.raises(
        ValueError, match="scene .*mirror_004.json cannot be read: object 1 has no 3d_coords"
    ):
        data.open_dataset(tmp_path)
    (tmp_path / "scenes/mirror_004.json").write_text('{"objec')
    with pytest.raises(ValueError, match="mirror_004.json cannot be read"):
        data.open_dataset(tmp_path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="images is missing"):
        data.open_dataset(tmp_path, "clevr_mirror")


def test_shapestacks(tmp_path):
    expected = miniature.shapestacks(tmp_path)
    train = {path: expected[path] for path in sorted(expected)[:2] + sorted(expected)[2:3]}
    assert len(expected) == 4 and len(data.open_dataset(tmp_path)) == 3
    check(data.open_dataset(tmp_path, "shapestacks"), train)
    test = {path: pair for path, pair in expected.items() if path not in train}
    check(data.open_dataset(tmp_path, split="test"), test)
    index = np.floor(np.arange(32) * (196 / 32)).astype(int) + 14
    check(
        data.open_dataset(tmp_path, size=32),
        {
            path: (resized(image[14:210, 14:210], 32), mask[np.ix_(index, index)])
            for path, (image, mask) in train.items()
        },
    )
    assert [is_unstable(path) for path in expected] == [False, False, True, True]
    with pytest.raises(FileNotFoundError, match="eval.txt is missing"):
        data.open_dataset(tmp_path, split="val")


def test_shapestacks_lists_in_disorder(tmp_path):
    miniature.shapestacks(tmp_path)
    listed = tmp_path / "splits/default/train.txt"
    listed.write_text("../recordings/env_blocks-hard-h=3-vcom=1-vpsf=0-v=1")
    with pytest.raises(ValueError, match="a line of .*train.txt must name one folder, got '../rec"):
        data.open_dataset(tmp_path)
    listed.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="split file .*train.txt cannot be read: "):
        data.open_dataset(tmp_path)
    listed.write_text("odd")
    miniature.save(miniature.picture(0, 224, 224), tmp_path / "recordings/odd/rgb-x-mono-0.png")
    assert [item["id"] for item in data.open_dataset(tmp_path)] == [
        "recordings/odd/rgb-x-mono-0.png"
    ]


def test_shapestacks_maps(tmp_path):
    """Beside the pictures, below iseg, one missing, none."""
    expected = miniature.shapestacks(tmp_path)
    maps = sorted(tmp_path.glob("recordings/*/iseg-*.map"))
    apart = tmp_path / "iseg" / maps[0].parent.name
    apart.mkdir(parents=True)
    maps[0].rename(apart / maps[0].name)
    first = data.open_dataset(tmp_path)[0]
    assert np.array_equal(first["mask"], expected[first["id"]][1])
    (apart / maps[0].name).unlink()
    with pytest.raises(FileNotFoundError, match=r"mask .*cam_1-mono-0.map is missing"):
        data.open_dataset(tmp_path)[0]
    for path in maps[1:]:
        path.unlink()
    assert "mask" not in data.open_dataset(tmp_path)[0]
    for path in (tmp_path / "recordings").glob("env_blocks*/*"):
        path.unlink()
    with pytest.raises(
        FileNotFoundError, match="env_blocks.* of .*train.txt is missing or has no picture"
    ):
        data.open_dataset(tmp_path)


def test_clevrtex(tmp_path):
    expected = list(miniature.clevrtex(tmp_path, 15).items())
    for split, part in (("test", expected[:1]), ("val", expected[1:3]), ("train", expected[3:])):
        check(data.open_dataset(tmp_path, split=split), dict(part))
    assert len(data.open_dataset(tmp_path / "clevrtex_full")) == 12
    # the central 19 of 24 x 32
    check(
        data.open_dataset(tmp_path, "clevrtex", size=8),
        {
            name: (
                resized(image[2:21, 6:25], 8),
                resized(mask[2:21, 6:25], 8, Image.Resampling.NEAREST),
            )
            for name, (image, mask) in expected[3:]
        },
    )
    miniature.clevrtex(tmp_path, 2, "outd")
    assert len(data.open_dataset(tmp_path, split="test", variant="outd")) == 2
    with pytest.raises(ValueError, match="variant must be one of full, outd, got None"):
        data.open_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="clevrtex_camo is missing"):
        data.open_dataset(tmp_path, variant="camo")
    mask = tmp_path / "clevrtex_full/0/CLEVRTEX_full_000003_flat.png"
    mask.unlink()
    with pytest.raises(FileNotFoundError, match="mask .*CLEVRTEX_full_000003_flat.png is missing"):
        data.open_dataset(tmp_path, variant="full")[0]
    (tmp_path / "clevrtex_full/0/CLEVRTEX_full_000004.png").unlink()
    with pytest.raises(
        FileNotFoundError,
        match="1 pictures are missing in .*clevrtex_full, the first is CLEVRTEX_full_000004.png",
    ):
        data.open_dataset(tmp_path, variant="full")


def test_coco(tmp_path):
    pytest.importorskip("pycocotools")
    expected = miniature.coco(tmp_path)
    check(data.open_dataset(tmp_path, split="val"), expected)
    # 20 x 30 has its shorter side brought to 10, and 5 columns cut off
    image, mask = expected[f"{42:012d}"]
    item = data.open_dataset(tmp_path, "coco", "val", 10)[0]
    assert np.array_equal(
        item["image"],
        np.array(Image.fromarray(image).resize((15, 10), Image.Resampling.BILINEAR))[:, 2:12],
    )
    assert np.array_equal(item["mask"], mask[1::2, 1::2][:, 2:12])
    (tmp_path / "val2017").rename(tmp_path / "pictures")
    with pytest.raises(FileNotFoundError, match="val2017 is missing"):
        data.open_dataset(tmp_path, split="val")
    (tmp_path / "images").mkdir()
    (tmp_path / "pictures").rename(tmp_path / "images/val2017")
    check(data.open_dataset(tmp_path, split="val"), expected)
    with pytest.raises(
        FileNotFoundError,
        match="instances_train2017.json is missing; there are instances_val2017.json",
    ):
        data.open_dataset(tmp_path)


@pytest.mark.parametrize(
    "change, match",
    [
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [1, 1], "counts": [1]}),
            r"annotation 5 .* must be 20 x 30, got \[1, 1\]",
        ),
        (
            lambda c: c["annotations"][0].update(segmentation=[]),
            "annotation 5 of .*instances_val2017.json cannot be drawn",
        ),
        (
            lambda c: c["images"][0].update(height=7),
            "000000000042.jpg must be 7 x 30 as .*instances_val2017.json says",
        ),
        (lambda c: c["images"][0].pop("height"), "^picture 42 of .*val2017.json has no height$"),
        (
            lambda c: c["images"][0].update(width="30"),
            "^width of picture 42 .* an integer, got '30'",
        ),
        (lambda c: c["images"][0].update(id="42"), "^id of picture '42' .* an integer, got '42'"),
        (lambda c: c["images"].append(3), "^picture at index 3 of .* must be an object, got 3"),
        (lambda c: c.pop("images"), "^annotations .*val2017.json has no images"),
        (lambda c: c.pop("annotations"), "^annotations .*val2017.json has no annotations"),
        (lambda c: c["annotations"].append(None), "^annotation at index 3 .* an object, got None"),
        (
            lambda c: c["annotations"][0].update(image_id="42"),
            "^image_id of annotation 5 of .* must be an integer, got '42'",
        ),
        (lambda c: c["annotations"][0].pop("image_id"), "^annotation 5 of .* has no image_id"),
        (lambda c: c["annotations"][0].update(id="5"), "^id of annotation '5' .* got '5'"),
        (lambda c: c["annotations"][1].pop("id"), "^annotation at index 1 of .* has no id"),
        (lambda c: c["annotations"][0].pop("segmentation"), "^annotation 5 .* no segmentation"),
        (
            lambda c: c["annotations"][0].update(segmentation=None),
            "^segmentation of annotation 5 of .* must be a list or an object, got None",
        ),
        *(
            (
                lambda c, outline=outline: c["annotations"][0].update(segmentation=outline),
                f"^annotation 5 of .*val2017.json cannot be drawn: {message}",
            )
            for outline, message in (
                ({"size": [20, 30], "counts": [1, 2]}, "counts must be of 600 pixels, got 3"),
                ({"size": [20, 30], "counts": [601, -1]}, "counts must be run lengths"),
                ({"size": [20, 30], "counts": ""}, "counts must be of 600 pixels, got 0"),
                ({"size": [20, 30], "counts": "hb0o"}, "counts must be run lengths as text"),
                ({"size": [20, 30], "counts": "é"}, "counts must be run lengths as text"),
                ({"size": "20", "counts": ""}, "size of the outline must be a list, got '20'"),
                ({"counts": [600]}, "the outline has no size"),
                ({"size": [20, 30]}, "the outline has no counts"),
                ([[1, 2, 3, 4, 5, "6"]], "a polygon must be a list of at least 4 numbers"),
                ([[2, 3, 12, 3, 12, 13], []], "a polygon must be a list of at least 4 numbers"),
                ([1, 2, 3, 4, 5, 6], "a polygon must be a list of at least 4 numbers"),
                ([[2, 3, float("nan"), 3, 12, 13]], "a polygon must be .* of at most 1,000,000"),
                ([[2, 3, 1e9, 3, 12, 13]], "a polygon must be .* of at most 1,000,000"),
            )
        ),
    ],
)
def test_coco_annotations_in_disorder(tmp_path, change, match):
    pytest.importorskip("pycocotools")
    miniature.coco(tmp_path)
    path = tmp_path / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=match):
        data.open_dataset(tmp_path, split="val")[0]


def test_coco_annotations_of_pictures_that_are_not_listed(tmp_path):
    """They are ignored, as by pycocotools, whatever they hold; as after a choice of pictures."""
    pytest.importorskip("pycocotools")
    expected = miniature.coco(tmp_path)
    path = tmp_path / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"] += [{"id": 6, "image_id": 99, "segmentation": []}, {"image_id": 98}]
    gone = content["images"].pop()
    path.write_text(json.dumps(content))
    check(
        data.open_dataset(tmp_path, split="val"),
        {name: pair for name, pair in expected.items() if name != Path(gone["file_name"]).stem},
    )


def test_coco_run_lengths_as_text(tmp_path):
    """Compressed by pycocotools itself, with many short and long runs."""
    mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for share in (0.5, 0.01):
        drawn = np.asfortranarray(rng.random((90, 70)) < share, np.uint8)
        counts = mask.encode(drawn)["counts"].decode()
        flat = np.concatenate([[0], drawn.ravel("F"), [2]])
        runs = np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()
        assert _run_lengths(counts) == runs


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda s: s.update(objects=None), "^objects of scene .* must be a list, got None"),
        (lambda s: s.update(objects=[3]), "object 1 must be an object, got 3"),
        *(
            (
                lambda s, name=name, value=value: s["objects"][0].update({name: value}),
                f"^scene .* cannot be read: {message}",
            )
            for name, value, message in (
                ("color", "pink", "object 1: color must be one of gray, .*, got 'pink'"),
                ("color", ["red"], r"color of object 1 must be a text, got \['red'\]"),
                ("3d_coords", [0, 1], r"object 1: 3d_coords must be three numbers .* \[0, 1\]"),
                ("3d_coords", ["0", "1", "2"], "object 1: 3d_coords must be three numbers"),
                ("3d_coords", [0, 1, float("nan")], "object 1: 3d_coords must be three numbers"),
                ("3d_coords", [0, 1, 10**400], "object 1: 3d_coords must be three numbers"),
                ("3d_coords", "012", "3d_coords of object 1 must be a list, got '012'"),
            )
        ),
    ],
)
@pytest.mark.parametrize("layout", ["clevr", "clevr_mirror"])
def test_scenes_in_disorder(tmp_path, layout, change, match):
    miniature.clevr_mirror(tmp_path)
    scene = {"image_filename": "a.png", "objects": [dict(miniature.OBJECT)]}
    change(scene)
    if layout == "clevr":
        path = tmp_path / "scenes/CLEVR_train_scenes.json"
        scene = {"scenes": [scene]}
        (tmp_path / "images/train").mkdir()
    else:
        path = tmp_path / "scenes/mirror_003.json"
    path.write_text(json.dumps(scene))
    with pytest.raises(ValueError, match=match):
        data.open_dataset(tmp_path, layout)


@pytest.mark.parametrize(
    "text, match",
    [
        ('{"scenes": [{"objects": []}]}', "^scene 0 of .*scenes.json has no image_filename"),
        (
            '{"scenes": [{"objects": [], "image_filename": 7}]}',
            "^image_filename of scene 0 of .*scenes.json must be a text, got 7",
        ),
        ('{"scenes": {"a": 1}}', "^scenes of scenes .*scenes.json must be a list, got {'a': 1}"),
        ("[]", r"^scenes .*scenes.json must be an object, got \[\]"),
        ("[" * 100_000, "^scenes .*scenes.json cannot be read: its JSON is nested too deeply"),
        ("\x00", "^scenes .*scenes.json cannot be read: "),
    ],
)
def test_a_scenes_file_in_disorder(tmp_path, text, match):
    for folder in ("images/train", "scenes"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "scenes/CLEVR_train_scenes.json").write_text(text)
    with pytest.raises(ValueError, match=match):
        data.open_dataset(tmp_path)


def test_a_folder_in_a_files_place(tmp_path):
    miniature.clevr_mirror(tmp_path / "mirror")
    (tmp_path / "mirror/scenes/more.json").mkdir()
    with pytest.raises(ValueError, match="scene .*more.json cannot be read: Is a directory"):
        data.open_dataset(tmp_path / "mirror")
    (tmp_path / "pictures/a.png").mkdir(parents=True)
    with pytest.raises(ValueError, match="picture .*a.png cannot be read: it is a folder"):
        data.open_dataset(tmp_path / "pictures")[0]


def test_coco_without_pycocotools(tmp_path, monkeypatch):
    miniature.coco(tmp_path)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ImportError, match="pip install 'pycocotools"):
        data.open_dataset(tmp_path, split="val")


def test_folder(tmp_path):
    for name, (height, width) in {"b.png": (20, 30), "a.jpg": (30, 20), "c.PNG": (9, 9)}.items():
        miniature.save(miniature.picture(1, height, width), tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    stored = data.open_dataset(tmp_path)
    assert [item["id"] for item in stored] == ["a", "b", "c"] and set(stored[1]) == {"image", "id"}
    assert np.array_equal(stored[1]["image"], miniature.picture(1, 20, 30))
    small = data.open_dataset(tmp_path, "folder", "val", 10)[1]["image"]
    assert np.array_equal(
        small,
        np.array(Image.fromarray(stored[1]["image"]).resize((15, 10), Image.Resampling.BILINEAR))[
            :, 2:12
        ],
    )
    miniature.save(miniature.picture(1, 5, 5), tmp_path / "val/only.png")
    assert [item["id"] for item in data.open_dataset(tmp_path, split="val")] == ["only"]
    assert len(data.open_dataset(tmp_path, split="train")) == 3
    with pytest.raises(ValueError, match="split must be one of train, val, test, got 'vaal'"):
        data.open_dataset(tmp_path, split="vaal")
    (tmp_path / "test").mkdir()
    with pytest.raises(FileNotFoundError, match="test has no picture"):
        data.open_dataset(tmp_path, split="test")


# -- odd pictures ------------------------------------------------------------------------------


def test_odd_pictures(tmp_path):
    grey, colours = miniature.picture(0, 6, 7)[..., 0], miniature.picture(0, 6, 7)
    alike = np.repeat(grey[..., None], 3, 2)
    halves = np.dstack([colours, np.full((6, 7), 128, np.uint8)])
    palette = Image.fromarray(colours).quantize(8)
    for name, image, expected in (
        ("grey.png", Image.fromarray(grey), alike),
        ("grey_alpha.png", Image.merge("LA", 2 * [Image.fromarray(grey)]), alike),
        ("alpha.png", Image.fromarray(halves), colours),
        ("sixteen.png", Image.fromarray(grey.astype(np.uint16) * 256 + 200), alike),
        ("bits.png", Image.fromarray(grey > 127), alike // 128 * 255),
        ("palette.png", palette, np.array(palette.convert("RGB"))),
        ("pixel.png", Image.fromarray(colours[:1, :1]), colours[:1, :1]),
    ):
        image.save(tmp_path / name)
        found = data.load_image(tmp_path / name)
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected), name
    palette.save(tmp_path / "seen_through.png", transparency=bytes([0, 128] + 6 * [255]))
    assert np.array_equal(
        data.load_image(tmp_path / "seen_through.png"), np.array(palette.convert("RGB"))
    )
    Image.fromarray(grey).save(tmp_path / "grey.jpg")
    stored = np.array(Image.open(tmp_path / "grey.jpg"))
    assert np.array_equal(
        data.load_image(tmp_path / "grey.jpg"), np.repeat(stored[..., None], 3, 2)
    )
    (tmp_path / "only").mkdir()
    Image.fromarray(colours[:1, :1]).save(tmp_path / "only/pixel.png")
    assert (data.open_dataset(tmp_path / "only", size=16)[0]["image"] == colours[0, 0]).all()


def test_pictures_that_cannot_be_read(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    miniature.save(miniature.picture(0, 50, 50), tmp_path / "cut.jpg")
    miniature.save(miniature.picture(0, 50, 50), tmp_path / "cut.png")
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "float.tif")
    for name in ("cut.jpg", "cut.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-400])
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=f"picture .*{path.name} cannot be read"):
            data.load_image(path)
    with pytest.raises(FileNotFoundError, match="picture .*none.png is missing"):
        data.load_image(tmp_path / "none.png")


def test_label_maps(tmp_path):
    image, mask = miniature.picture(0, 6, 7), miniature.labels(0, 6, 7)
    miniature.save(mask, tmp_path / "grey.png")
    assert np.array_equal(load_labels(tmp_path / "grey.png", image), mask)
    miniature.save(mask > 1, tmp_path / "bits.png")
    assert np.array_equal(load_labels(tmp_path / "bits.png", image), mask > 1)
    with pytest.raises(
        ValueError, match=r"mask .*grey.png must have its picture's shape \(5, 7\), got \(6, 7\)"
    ):
        load_labels(tmp_path / "grey.png", image[1:])
    miniature.save(image, tmp_path / "colours.png")
    with pytest.raises(ValueError, match="mask .*colours.png cannot be read: it has mode RGB"):
        load_labels(tmp_path / "colours.png", image)


def test_pictures_too_small_for_the_crop(tmp_path):
    miniature.shapestacks(tmp_path / "stacks")
    for path in (tmp_path / "stacks/recordings").glob("*/*mono-0.*"):
        miniature.save(miniature.picture(0, 1, 1), path)
    with pytest.raises(ValueError, match="rgb-.*png is too small for its data set's crop: 1 x 1"):
        data.open_dataset(tmp_path / "stacks", size=32)[0]
    miniature.clevrtex(tmp_path / "tex")
    for path in (tmp_path / "tex").rglob("*_000002*.png"):
        miniature.save(miniature.picture(0, 1, 1)[..., 0], path)
    with pytest.raises(
        ValueError, match="CLEVRTEX_full_000002.png is too small for its data set's crop: 1 x 1"
    ):
        data.open_dataset(tmp_path / "tex", size=32)[0]


@pytest.mark.parametrize(
    "dataset",
    ["clevr", "clevr_with_masks", "clevr_mirror", "shapestacks", "clevrtex", "coco", "folder"],
)
def test_an_empty_folder_names_what_is_missing(tmp_path, dataset):
    if dataset == "coco":
        pytest.importorskip("pycocotools")
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        data.open_dataset(tmp_path, dataset)
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        data.open_dataset(tmp_path / "nowhere", dataset)


# -- beside what the official readers return ---------------------------------------------------


def shared(name):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs ../shared/fixtures/{name} beside the checkout")
    with np.load(folder / "expected.npz") as file:
        return folder, dict(file)


def column(dataset, key):
    return np.stack([item[key] for item in dataset])


def test_clevr_with_masks_as_read_officially():
    folder, expected = shared("clevr_with_masks")
    features = [
        clevr_with_masks.decode(content)
        for _, content in tfrecord.records(folder / clevr_with_masks.FILE)
    ]
    for name, values in expected.items():
        ours = np.stack([f[name] for f in features])
        assert ours.dtype == values.dtype and np.array_equal(ours, values), name
    dataset = data.open_dataset(folder)
    assert np.array_equal(column(dataset, "image"), expected["image"])
    for i in range(11):
        assert np.array_equal(column(dataset, "mask") == i, expected["mask"][:, i, ..., 0] == 255)


def test_clevr_mirror_as_read_publicly():
    folder, expected = shared("clevr_mirror")
    dataset = data.open_dataset(folder, split="all")
    assert [item["id"] for item in dataset] == list(expected["stem"])
    assert np.array_equal(column(dataset, "image"), expected["image"])
    target = expected["target"].copy()
    target[..., :3] = (6 * target[..., :3] - 3) / 3 * target[..., 18:]
    assert np.abs(column(dataset, "target") - target).max() < 1e-6
    squashed = column(data.open_dataset(folder, split="all", size=128), "image")
    assert np.array_equal(squashed.transpose(0, 3, 1, 2), expected["image_resized128"])
    few = data.open_dataset(folder, split="all", max_objects=6)
    assert [item["id"] for item in few] == list(expected["stem_max6"])


def test_shapestacks_as_read_officially():
    folder, expected = shared("shapestacks")
    for split in ("train", "eval", "test"):
        rows = expected["split"] == split
        dataset, small = (
            data.open_dataset(folder, split=split),
            data.open_dataset(folder, split=split, size=128),
        )
        assert [item["id"] for item in dataset] == list(expected["path"][rows])
        assert np.array_equal(
            [is_unstable(item["id"]) for item in dataset], expected["unstable"][rows]
        )
        assert np.array_equal(column(dataset, "image"), expected["image"][rows])
        assert np.array_equal(column(dataset, "mask"), expected["label"][rows])
        assert np.array_equal(
            column(small, "image").transpose(0, 3, 1, 2), expected["image_crop128"][rows]
        )
        assert np.array_equal(column(small, "mask"), expected["label_crop128"][rows])


def test_clevrtex_as_read_officially():
    folder, expected = shared("clevrtex")
    for split in ("train", "val", "test"):
        rows = expected[f"split_{split}"]
        dataset, small = (
            data.open_dataset(folder, split=split),
            data.open_dataset(folder, split=split, size=128),
        )
        assert [item["id"] for item in dataset] == [f"CLEVRTEX_full_{i:06d}" for i in rows]
        for i, stored, cropped in zip(rows, dataset, small):
            assert np.array_equal(stored["image"].transpose(2, 0, 1), expected["image"][i])
            assert np.array_equal(stored["mask"], expected["mask"][i, 0])
            assert np.array_equal(cropped["image"].transpose(2, 0, 1), expected["image_crop128"][i])
            assert np.array_equal(cropped["mask"], expected["mask_crop128"][i, 0])


def test_coco_as_read_officially():
    pytest.importorskip("pycocotools")
    folder, expected = shared("coco")
    dataset = data.open_dataset(folder, split="val")
    assert [int(item["id"]) for item in dataset] == list(expected["image_ids_json_order"])
    for item in dataset:
        number = int(item["id"])
        assert np.array_equal(item["image"], expected[f"{number}_image"])
        assert np.array_equal(item["mask"], expected[f"{number}_spot_instance"])


def test_an_option_that_a_reader_does_not_take(tmp_path):
    miniature.shapestacks(tmp_path)
    with pytest.raises(TypeError, match="max_objects must be left out .* shapestacks, .* got 3"):
        data.open_dataset(tmp_path, max_objects=3)
    limited = {name for name, reader in data.READERS.items() if "max_objects" in reader.takes}
    assert limited == {"clevr", "clevr_with_masks", "clevr_mirror"}
    assert all(reader.most_objects == 10 for reader in data.READERS.values())
