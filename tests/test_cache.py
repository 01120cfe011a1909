"""The cache of decoded pictures, and `python -m examples.data inspect`."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("tqdm")
import miniature  # noqa: E402
from PIL import Image  # noqa: E402
from processes import HANG, started  # noqa: E402

from examples import data  # noqa: E402
from examples.data import cache  # noqa: E402
from examples.data.__main__ import main  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def same(one, two):
    assert len(one) == len(two)
    for a, b in zip(one, two):
        assert a.keys() == b.keys() and a["id"] == b["id"]
        for key in a.keys() - {"id"}:
            assert a[key].dtype == b[key].dtype and np.array_equal(a[key], b[key])


@pytest.mark.parametrize(
    "write, options",
    [
        (miniature.clevr_mirror, {"split": "all"}),
        (miniature.shapestacks, {"size": 16}),
        (miniature.clevrtex, {"split": "val"}),
    ],
)
def test_a_cache_gives_the_readers_items(tmp_path, write, options):
    write(tmp_path / "data")
    dataset = data.open_dataset(tmp_path / "data", cache=tmp_path / "cache", **options)
    same(dataset, data.open_dataset(tmp_path / "data", **options))
    same(pickle.loads(pickle.dumps(dataset)), dataset)
    assert len(pickle.dumps(dataset)) < 1000  # a worker process maps the files, it is not sent them
    with pytest.raises(IndexError, match="got -1"):
        dataset[-1]
    item = dataset[0]
    item["image"][:] = 0  # a copy
    assert dataset[0]["image"].any()


def test_a_cache_is_written_once_and_anew_when_anything_changes(tmp_path, monkeypatch):
    miniature.clevrtex(tmp_path / "data")
    written = []
    monkeypatch.setattr(
        cache,
        "write",
        lambda reader, place, write=cache.write: (written.append(place), write(reader, place)),
    )

    def opened(**options):
        return data.open_dataset(tmp_path / "data", cache=tmp_path / "cache", **options)

    opened(), opened()
    assert len(written) == 1
    opened(size=8), opened(split="val"), opened(variant="full")
    assert len(set(written)) == 4
    picture = tmp_path / "data/clevrtex_full/0/CLEVRTEX_full_000003.png"
    miniature.save(miniature.picture(99, 24, 32), picture)
    assert np.array_equal(opened()[1]["image"], miniature.picture(99, 24, 32)) and len(written) == 5
    stamp = picture.stat()
    os.utime(picture, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    opened()
    assert len(set(written)) == 6


def test_pictures_that_cannot_be_read_are_left_out_and_counted(tmp_path):
    miniature.clevrtex(tmp_path / "data")
    folder = tmp_path / "data/clevrtex_full/0"
    (folder / "CLEVRTEX_full_000003.png").write_bytes(b"cut")
    (folder / "CLEVRTEX_full_000004_flat.png").unlink()
    for _ in range(2):  # written, and found
        with pytest.warns(
            RuntimeWarning,
            match="2 of 8 pictures of .*data .train. cannot be read .*; the first: .*000003.png",
        ):
            dataset = data.open_dataset(tmp_path / "data", cache=tmp_path / "cache")
        assert [item["id"][-1] for item in dataset] == list(
            "256789"
        ) and "000004_flat.png is missing" in dataset.skipped[1]
    for path in folder.parent.rglob("*_flat.png"):
        path.unlink()
    with pytest.raises(
        ValueError, match="none of the 8 pictures of .* can be read; the first: mask .*missing"
    ):
        data.open_dataset(tmp_path / "data", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_what_no_cache_can_hold(tmp_path):
    for name, side in (("a", 5), ("b", 6)):
        miniature.save(miniature.picture(0, side, side), tmp_path / f"data/{name}.png")
    with pytest.raises(
        ValueError,
        match=r"one shape, \(5, 5, 3\) as the first, for a cache: b has \(6, 6, 3\); give a size",
    ):
        data.open_dataset(tmp_path / "data", cache=tmp_path / "cache")
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]
    assert len(data.open_dataset(tmp_path / "data", size=4, cache=tmp_path / "cache")) == 2
    with pytest.raises(ValueError, match="cache must be None for the built-in scenes"):
        data.open_dataset(cache=tmp_path)


def test_a_damaged_cache_is_named(tmp_path):
    miniature.clevrtex(tmp_path / "data")
    data.open_dataset(tmp_path / "data", cache=tmp_path / "cache")
    image = next((tmp_path / "cache").glob("*/image.npy"))
    image.write_bytes(image.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"cache {image.parent} cannot be read .*; remove it"):
        data.open_dataset(tmp_path / "data", cache=tmp_path / "cache")
    image.unlink()
    with pytest.raises(ValueError, match="image.npy.*; remove it"):
        data.open_dataset(tmp_path / "data", cache=tmp_path / "cache")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    miniature.clevrtex(tmp_path / "data")

    def full(self, array, name):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache._Column, "append", full)
    with pytest.raises(
        OSError, match="cache .*clevrtex-train-stored.* cannot be written: .*No space left"
    ):
        data.open_dataset(tmp_path / "data", cache=tmp_path / "cache")
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


SLOWLY = """
import sys, time
from examples import data
from examples.data import clevrtex
read = clevrtex.ClevrTex.read
def slowly(self, index):
    print(index, flush=True)
    time.sleep(0.1)
    return read(self, index)
clevrtex.ClevrTex.read = slowly
print(len(data.open_dataset(sys.argv[1], cache=sys.argv[2])))
"""


def slowly(tmp_path):
    command = (sys.executable, "-c", SLOWLY, tmp_path / "data", tmp_path / "cache")
    return started(*command, cwd=ROOT, text=True, stdout=subprocess.PIPE)


def test_killed_while_writing_and_two_at_once(tmp_path):
    """What a killed process left is no cache; of two processes one writes and the other waits for
    it."""
    miniature.clevrtex(tmp_path / "data")
    with slowly(tmp_path) as killed:
        assert [killed.stdout.readline() for _ in range(3)] == ["0\n", "1\n", "2\n"]
        killed.kill()
        killed.wait()
    assert [p.suffix for p in sorted((tmp_path / "cache").iterdir())] == [".lock", ".partial"]
    with slowly(tmp_path) as one, slowly(tmp_path) as other:
        outputs = sorted((p.communicate(timeout=HANG)[0] for p in (one, other)), key=len)
    assert outputs == ["8\n", "".join(f"{i}\n" for i in range(8)) + "8\n"]
    same(
        data.open_dataset(tmp_path / "data", cache=tmp_path / "cache"),
        data.open_dataset(tmp_path / "data"),
    )


def test_a_stream_has_a_temporary_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    miniature.clevr_with_masks(tmp_path / "data", 2)
    dataset = data.open_dataset(tmp_path / "data", size=16)
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(list((tmp_path / "temporary").glob("*/*/items.json"))) == 1
    cache.remove(dataset.place.parent, os.getpid() + 1)  # what a forked child's end would run
    assert dataset.place.is_dir()
    same(dataset, copy)
    del dataset
    assert not list((tmp_path / "temporary").iterdir())
    path = tmp_path / "data/clevr_with_masks_train.tfrecords"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(
        ValueError, match="clevr_with_masks_train.tfrecords is cut or damaged at record [12]"
    ):
        data.open_dataset(tmp_path / "data")
    assert not list((tmp_path / "temporary").iterdir())


# -- inspect -----------------------------------------------------------------------------------


def inspect(capsys, *arguments, status=0):
    try:
        main(["inspect", *map(str, arguments)])
        code = 0
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == status, err
    return out + err


def test_inspect(tmp_path, capsys):
    expected = miniature.clevrtex(tmp_path)
    (tmp_path / "clevrtex_full/0/CLEVRTEX_full_000002_flat.png").unlink()
    (tmp_path / "clevrtex_full/0/CLEVRTEX_full_000003.png").write_bytes(b"cut")
    out = inspect(capsys, tmp_path, "--check", "--out", tmp_path / "new/seen.png")
    for line in (
        "data set    clevrtex, told by the layout",
        "  train     8 pictures",
        "  val       1 pictures",
        "missing     1 files",
        "000002_flat.png",
        "read        6 of 8 pictures; unreadable: 2 pictures",
        "000003.png cannot be read",
        "picture     CLEVRTEX_full_000004, 24 x 32 x 3 as stored",
        "masks       3 objects in this picture",
    ):
        assert line in out, line
    image, mask = expected["CLEVRTEX_full_000004"]
    seen = np.array(Image.open(tmp_path / "new/seen.png"))[::10, ::10]
    assert np.array_equal(seen[:, :32], image)
    colours = [{tuple(c) for c in seen[:, 32:][mask == i]} for i in range(4)]
    assert (
        all(len(c) == 1 for c in colours)
        and len(set.union(*colours)) == 4
        and (0, 0, 0) in colours[0]
    )
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["seen.png"]


def test_inspect_other_sets(tmp_path, capsys):
    out = tmp_path / "seen.png"
    miniature.clevr_mirror(tmp_path / "mirror")
    text = inspect(capsys, tmp_path / "mirror", "--split", "val", "--size", "16", "--out", out)
    assert (
        "1 pictures" in text
        and "masks       none" in text
        and "properties  0 objects" in text
        and "16 x 16 x 3\n" in text
    )
    miniature.clevr_with_masks(tmp_path / "records", 2)
    text = inspect(capsys, tmp_path / "records", "--out", out)
    assert "read        2 pictures, none damaged" in text and "masks       1 objects" in text
    miniature.shapestacks(tmp_path / "stacks")
    text = inspect(capsys, tmp_path / "stacks", "--dataset", "shapestacks", "--out", out)
    assert "eval      cannot be opened: split file" in text and "train     3 pictures" in text


def test_inspect_says_what_is_wrong(tmp_path, capsys):
    assert "error: " + str(tmp_path) in inspect(capsys, tmp_path, status=2)
    assert "nowhere is missing" in inspect(capsys, tmp_path / "nowhere", status=2)
    assert "clevr_with_masks_train.tfrecords is missing" in inspect(
        capsys, tmp_path, "--dataset", "clevr_with_masks", status=2
    )
    miniature.clevrtex(tmp_path, 3)
    for size in ("0", "-3", "9" * 20):
        assert f"size must be an int from 1 to 32768, got {size}" in inspect(
            capsys, tmp_path, "--size", size, status=2
        )
    (tmp_path / "seen").mkdir()
    assert "seen cannot be written" in inspect(
        capsys, tmp_path, "--out", tmp_path / "seen", status=2
    )
    assert not list(tmp_path.glob(".*"))
    assert "split must be one of" in inspect(capsys, tmp_path, "--split", "nothing", status=2)
    for path in tmp_path.rglob("*_flat.png"):
        path.unlink()
    text = inspect(capsys, tmp_path, "--out", tmp_path / "seen.png")
    assert "read        0 of 3 pictures" in text and not (tmp_path / "seen.png").exists()
