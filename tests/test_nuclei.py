"""Counting nuclei: what is read, cropped, put together again and compared."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for name in ("scipy", "safetensors", "matplotlib", "tqdm", "PIL"):
    pytest.importorskip(name)

from PIL import Image  # noqa: E402

from examples import nuclei  # noqa: E402
from examples.nuclei import CROP, Labelled, agreement, centres_of, crop, pairwise, read  # noqa: E402
from examples.shared.command import tell  # noqa: E402


def discs(height, width, number=40, seed=0):
    """A picture of bright discs that do not touch, and its labels."""
    rng, labels = np.random.default_rng(seed), np.zeros((height, width), np.uint16)
    y, x = np.mgrid[:height, :width]
    while number:
        place = rng.integers(6, height - 6), rng.integers(6, width - 6)
        near = np.hypot(y - place[0], x - place[1])
        if not labels[near < 12].any():
            labels[near < 5], number = number, number - 1
    return np.where(labels > 0, 3000, 200).astype(np.uint16), labels


class Oracle(torch.nn.Module):
    """Finds the true centres of a crop, which it knows by its place."""

    def __init__(self, centres, width):
        super().__init__()
        self.centres, self.width = centres, width
        self.parameter = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image, seeds, iterations, slots):
        top, left = self.places[seeds[0]]
        own = (self.centres + 0.5 - [left, top]) / CROP
        inside = ((own >= 0) & (own < 1)).all(1)
        found = np.concatenate([own, 0.4 + 0.5 * inside[:, None]], 1)
        return torch.from_numpy(found)[None]


@pytest.mark.parametrize("size", [(128, 128), (200, 330), (256, 512)])
def test_crops_find_every_nucleus_once(size, monkeypatch):
    image, labels = discs(*size, number=12)
    centres = np.array([np.argwhere(labels == n).mean(0)[::-1] for n in range(1, 13)])
    model = Oracle(centres, size[1])
    model.places = {
        nuclei.eval_seeds([top * size[1] + left])[0]: (top, left)
        for top in nuclei.starts(size[0])
        for left in nuclei.starts(size[1])
    }
    found = centres_of(model, image)
    assert len(found) == 12 and agreement(found, centres) == {"precision": 1, "recall": 1}


def test_agreement_by_hand():
    true = np.array([[10.0, 10], [30, 10], [50, 10]])
    found = np.array([[13.0, 14], [30, 10], [31, 10], [90, 90]])
    assert agreement(found, true) == {"precision": 0.5, "recall": 2 / 3}
    nothing = np.zeros((0, 2))
    assert agreement(nothing, true) == {"precision": 0, "recall": 0}


def test_a_crops_target_is_where_its_nuclei_are():
    """The brightest spot of a crop with one nucleus is its centre, however it is turned."""
    image = np.zeros((200, 300), np.float32)
    image[90:93, 140:143] = 1
    given, rng, seen = Labelled(image, np.array([[141.0, 91.0]])), np.random.default_rng(0), 0
    for _ in range(60):
        picture, target = crop(given, rng)
        assert picture.shape == (CROP, CROP) and target.shape == (nuclei.SLOTS, 3)
        assert not target[1:].any()
        if target[0, 2]:
            y, x = np.argwhere(picture > 0.5).mean(0)
            assert np.abs(target[0, :2] * CROP - 0.5 - [x, y]).max() <= 1
            seen += 1
    assert seen > 10


def test_pairwise_by_hand():
    prediction = torch.tensor([[[0.5, 0.5, 0.8]]])
    target = torch.tensor([[[0.7, 0.5, 1.0], [0.0, 0.0, 0.0]]])
    loss = pairwise(prediction, target, 0.1)
    there = (0.2 - 0.05) / 0.1 - np.log(0.8)
    assert np.allclose(loss[0, 0], [there, -np.log(0.2)], atol=1e-5)


def test_what_is_read(tmp_path):
    image, labels = discs(130, 140, number=5)
    np.savez(tmp_path / "both.npz", image=image, mask=labels)
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    both = read(tmp_path / "both.npz")
    apart = read(tmp_path / "image.png", tmp_path / "labels.png")
    assert np.array_equal(both.image, apart.image) and np.array_equal(both.centres, apart.centres)
    assert both.image.min() == 0 and both.image.max() == 1 and both.centres.shape == (5, 2)
    assert read(tmp_path / "image.png").centres is None
    Image.fromarray(((labels > 0) * 255).astype(np.uint8)).save(tmp_path / "binary.png")
    parts = read(tmp_path / "image.png", tmp_path / "binary.png")
    assert sorted(map(tuple, parts.centres)) == sorted(map(tuple, both.centres))
    right = both.part(70, 140)
    assert right.image.shape == (130, 70) and (right.centres >= 0).all()
    assert len(right.centres) == (both.centres[:, 0] >= 70).sum()


def test_it_trains_counts_and_draws(tmp_path, capsys):
    image, labels = discs(128, 512)
    np.savez(tmp_path / "cells.npz", image=image, mask=labels)
    given = [str(tmp_path / "cells.npz"), "--threads", "1"]
    out = tmp_path / "run"
    assert tell(lambda: nuclei.work([*given, "--steps", "2", "--out", str(out)])) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {"count", "labelled", "precision", "recall"} == set(figures)
    assert figures["labelled"] == len(read(given[0]).part(384, 512).centres)
    assert (out / "model.safetensors").exists() and (out / "held_out.png").exists()
    assert tell(lambda: nuclei.work([*given, "--run", str(out), "--out", str(out)])) == 0
    assert (out / "found.png").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no.png"], "picture no.png is missing"),
        (["image.png"], "mask must be given to train, got none"),
        (["small.png"], "small.png must have at least 128 x 128 pixels, got (20, 20)"),
        (["image.png", "--mask", "small.png"], "labels must have the picture's shape (130, 140)"),
        (["image.png", "--mask", "empty.png"], "labels must have a nucleus, got none"),
        (["image.png", "--mask", "labels.png"], "must be at least 512 pixels wide, got 140"),
        (["image.png", "--mask", "labels.png", "--steps", "0"], "steps must be at least 1, got 0"),
        (["image.npz"], "image.npz must be an .npz with an array image"),
        (["nan.npz"], "nan.npz must be finite"),
        (["image.png", "--threads", "-1"], "threads must be from 1 to"),
        (["many.npz"], "must have at most 12 nuclei, and some, got 3"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image, labels = discs(130, 140, number=5)
    Image.fromarray(image).save("image.png")
    Image.fromarray(image[:20, :20]).save("small.png")
    Image.fromarray(labels).save("labels.png")
    Image.fromarray(0 * labels).save("empty.png")
    np.savez("image.npz", picture=image)
    np.savez("nan.npz", image=np.full((130, 140), np.nan))
    many = np.kron(np.arange(1, 145).reshape(6, 24), np.pad(np.ones((10, 10), int), (0, 11)))
    np.savez(
        "many.npz",
        image=np.random.default_rng(0).random((128, 512)),
        mask=np.pad(many, (0, 9))[:128, :512],
    )
    assert tell(lambda: nuclei.work(arguments)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
