"""Counting cell nuclei in one picture: `python -m examples.nuclei PICTURE --mask LABELS`.

A set predictor of centres learns from crops of the left three quarters of a picture whose nuclei
are labelled, and counts those of the last quarter, crop by crop. A picture of about a hundred
nuclei is enough. `--run DIR` counts those of another picture with what was learned, labelled or
not.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import nn
from tqdm import trange

from . import load
from .data.reader import decoded
from .set_prediction.config import Config
from .set_prediction.listing import surest
from .set_prediction.matching import set_loss
from .set_prediction.train import scale
from .shared import plots
from .shared.command import folder, set_threads, tell
from .shared.files import write_atomically
from .shared.modules import SlotEncoder, build, evaluation
from .shared.pictures import eval_seeds, seed_of

CROP = 128  # pixels along each side, brought to the model's 64 x 64
SLOTS = (
    24  # a crop has about eight nuclei of the size that this is made for, 15 to 30 pixels across
)
NEAR = 6.0  # pixels within which a centre is found
APART = 10.0  # pixels within which two found centres are one


class Centres(SlotEncoder):
    """Crops (B, 3, 64, 64) in [-1, 1] to (B, K, 3): x and y in [0, 1] of the crop, presence."""

    def __init__(self, config):
        super().__init__(config)
        width = self.slots.slot_dim
        self.head = nn.Sequential(nn.Linear(width, config.dim), nn.ReLU(), nn.Linear(config.dim, 3))

    def forward(self, image, seeds=None, num_iters=None, num_slots=None):
        return self.head(self.find(image, seeds, num_iters, num_slots)[0]).sigmoid()


def configuration(steps, seed):
    scales = {"widest": 1.0, "narrowest": 0.05}
    return Config.from_preset("tiny", slots=SLOTS, steps=steps, seed=seed, batch_size=16, **scales)


def pairwise(prediction, target, scale):
    """Negative log-likelihood of each pair (B, K, M): places by Huber's density, presence."""
    there, present = target[:, None, :, 2], prediction[:, :, None, 2]
    pairs = torch.broadcast_tensors(prediction[:, :, None, :2], target[:, None, :, :2])
    places = F.smooth_l1_loss(*pairs, reduction="none", beta=scale).sum(-1) / scale
    presence = F.binary_cross_entropy(*torch.broadcast_tensors(present, there), reduction="none")
    return there * places + presence


@dataclass
class Labelled:
    """A picture (H, W) in [0, 1], and the centres (n, 2), x and y in pixels, of its nuclei.

    They are the means of each label's pixels; where there is but one label, of its connected parts.
    """

    image: np.ndarray
    centres: np.ndarray | None

    def part(self, left, right):
        """Columns left to right; nuclei whose centre lies there."""
        centres = self.centres
        if centres is not None:
            inside = (centres[:, 0] >= left) & (centres[:, 0] < right)
            centres = centres[inside] - [left, 0]
        return Labelled(self.image[:, left:right], centres)


def read(path, mask=None) -> Labelled:
    """A picture and its labels: two files, or one .npz of arrays `image` and `mask`.

    ValueError, naming the file, for what is none, or labels of another shape or without a nucleus.
    """
    image, labels = arrays(path) if Path(path).suffix == ".npz" else (pixels(path), None)
    labels = labels if mask is None else pixels(mask)
    if image.ndim == 3 and image.shape[2] in (3, 4):
        image = image[..., :3].mean(2)
    if image.ndim != 2 or min(image.shape) < CROP:
        raise ValueError(f"{path} must have at least {CROP} x {CROP} pixels, got {image.shape}")
    if not np.isfinite(image).all():
        raise ValueError(f"{path} must be finite, got NaN or infinity")
    low, high = np.percentile(image, [1, 99.5])
    image = ((image - low) / max(high - low, 1e-6)).clip(0, 1) ** 0.5  # dim nuclei show
    image = image.astype(np.float32)
    if labels is None:
        return Labelled(image, None)
    if labels.shape != image.shape:
        raise ValueError(f"labels must have the picture's shape {image.shape}, got {labels.shape}")
    if len(np.unique(labels)) == 2:  # foreground and background
        labels, _ = ndimage.label(labels)
    own = [np.argwhere(labels == n).mean(0)[::-1] for n in np.unique(labels[labels > 0])]
    if not own:
        raise ValueError(f"labels must have a nucleus, got none besides {path}")
    return Labelled(image, np.array(own))


# as they are: labels may have 16 bits
pixels = partial(decoded, kind="picture", decode=np.array)


def arrays(path):
    try:
        with np.load(path) as file:
            return file["image"], file.get("mask")
    except FileNotFoundError:
        raise FileNotFoundError(f"picture {path} is missing") from None
    except Exception as error:  # of damaged archives, almost anything
        told = f"{path} must be an .npz with an array image, and a mask to train: {error}"
        raise ValueError(told) from error


def crop(given, rng):
    """A random crop, flipped, turned, brighter or darker; and its target (SLOTS, 3)."""
    height, width = given.image.shape
    left, top = rng.integers(width - CROP + 1), rng.integers(height - CROP + 1)
    image = given.image[top : top + CROP, left : left + CROP]
    places = (given.centres + 0.5 - [left, top]) / CROP  # a pixel's centre is half a pixel in
    places = places[((places >= 0) & (places < 1)).all(1)][:SLOTS]
    if rng.integers(2):
        image, places = image.T, places[:, ::-1]
    for axis in (0, 1):
        if rng.integers(2):
            image, places = np.flip(image, 1 - axis), places.copy()
            places[:, axis] = 1 - places[:, axis]
    target = np.zeros((SLOTS, 3), np.float32)
    target[: len(places)] = np.concatenate([places, np.ones((len(places), 1))], 1)
    return image * rng.uniform(0.7, 1.3) + rng.normal(0, 0.02), target


def to_input(crops):
    """Crops (n, CROP, CROP) in [0, 1] to what the model takes."""
    images = torch.from_numpy(np.stack(crops).astype(np.float32))[:, None] * 2 - 1
    return F.avg_pool2d(images, 2).expand(-1, 3, -1, -1)


def train(given, steps, seed=0):
    """A model of a labelled picture's centres.

    All but its head starts as the set predictor that ships: its slots find objects already, which
    a hundred nuclei that look alike do not teach.
    """
    config = configuration(steps, seed)
    model, rng = build(Centres, config), np.random.default_rng(seed)
    trained = load("pretrained/set_prediction-smm-64").state_dict()
    own = {name: w for name, w in trained.items() if not name.startswith("head.")}
    model.load_state_dict(own, strict=False)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, steps, pct_start=0.1)
    for step in (bar := trange(steps, desc="training", unit="step")):
        crops, targets = zip(*(crop(given, rng) for _ in range(config.batch_size)))
        seeds = [seed_of(seed, step * config.batch_size + i) for i in range(config.batch_size)]
        found = model(to_input(crops), seeds)
        loss_of = partial(pairwise, scale=scale(config, step))
        loss = set_loss(found, torch.from_numpy(np.stack(targets)), loss_of)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return model


def centres_of(model, image, seed=0):
    """Centres (n, 2) that a model finds in a picture (H, W), the surest first.

    It has twice the slots of training, as some start on the ground. Crops overlap by half. Each
    answers for its inner half, and at the picture's edge for all that lies there.
    """
    height, width = image.shape
    found = []
    with evaluation(model):
        for top in starts(height):
            for left in starts(width):
                part = image[top : top + CROP, left : left + CROP]
                number = eval_seeds([top * width + left], seed)
                x, y, present = model(to_input([part]), number, 7, 2 * SLOTS)[0].double().numpy().T
                x, y = x * CROP - 0.5, y * CROP - 0.5
                own = own_part(x, left, width) & own_part(y, top, height) & (present > 0.5)
                found.append(np.stack([x + left, y + top, present], 1)[own])
    found = np.concatenate(found)
    return found[surest(found[:, :2], found[:, 2], APART), :2]


def starts(length):
    """Where crops begin along a side of that length: half a crop apart, the last at the end."""
    return sorted({*range(0, length - CROP, CROP // 2), length - CROP})


def own_part(x, start, length):
    """Whether places within a crop are its own, and not its neighbours'."""
    quarter = CROP / 4
    first = start == 0
    last = start == length - CROP
    return (first | (x >= quarter)) & (last | (x < CROP - quarter))


def agreement(found, true):
    """Precision and recall of found centres, matched one to one within NEAR pixels."""
    distance = cdist(found, true) if len(found) else np.zeros((0, len(true)))
    rows, columns = linear_sum_assignment(np.minimum(distance, 2 * NEAR))
    right = int((distance[rows, columns] <= NEAR).sum())
    return {"precision": right / max(len(found), 1), "recall": right / max(len(true), 1)}


def draw(given, found, path):
    """The picture with a cross on every centre that is found, and a ring on every true one."""
    height, width = given.image.shape
    figure, axis = plots.plt.subplots(figsize=(8 * width / height, 8), layout="constrained")
    axis.imshow(given.image, cmap="gray")
    if given.centres is not None:
        axis.plot(*given.centres.T, "o", mfc="none", mec="tab:cyan", ms=9, label="labelled")
    axis.plot(*found.T, "x", color="tab:red", label="found")
    axis.legend(loc="upper right")
    axis.set_axis_off()
    plots.save(figure, path)


def count(model, given, path):
    """Figures of a picture, which is drawn to a file with what is found."""
    found = centres_of(model, given.image)
    draw(given, found, path)
    print(f"{path}: crosses are found centres, rings labelled ones", file=sys.stderr)
    figures = {"count": len(found)}
    if given.centres is not None and len(given.centres):
        figures |= {"labelled": len(given.centres), **agreement(found, given.centres)}
    return figures


def work(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m examples.nuclei", description=__doc__)
    add = parser.add_argument
    add("picture", help="a picture, or an .npz of arrays image and mask")
    add("--mask", help="its labels: 0 the background, a number for each nucleus")
    add("--run", type=folder, help="count with the model of this folder, in place of training one")
    add("--out", type=folder, default=Path("runs/nuclei"), help="folder for the model and pictures")
    add("--steps", type=int, default=3000, help="of training (default: 3000, about ten minutes)")
    add("--seed", type=int, default=0)
    add("--threads", type=int)
    options = parser.parse_args(arguments)
    if options.steps < 1:
        raise ValueError(f"steps must be at least 1, got {options.steps}")
    Config.settings()["threads"].check(options.threads)
    set_threads(options.threads)
    given = read(options.picture, options.mask)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.run:
        config = configuration(1, options.seed)
        config.weights = str(options.run / "model.safetensors")
        return count(build(Centres, config), given, options.out / "found.png")
    if given.centres is None:
        raise ValueError("mask must be given to train, got none: --mask, or an .npz with one")
    width = given.image.shape[1]
    if width // 4 < CROP:
        raise ValueError(f"the picture must be at least {4 * CROP} pixels wide, got {width}")
    learned = given.part(0, width * 3 // 4)
    in_a_crop = len(learned.centres) * CROP**2 / learned.image.size
    if not 0 < in_a_crop <= SLOTS / 2:
        raise ValueError(
            f"{CROP} x {CROP} pixels must have at most {SLOTS // 2} nuclei, and some, got "
            f"{in_a_crop:.1f} on average: resize the picture, so that they are 15 to 30 pixels wide"
        )
    model = train(learned, options.steps, options.seed)
    weights = {name: w.contiguous() for name, w in model.state_dict().items()}
    write_atomically(options.out / "model.safetensors", partial(save_file, weights))
    rest = given.part(width * 3 // 4, width)
    return count(model, rest, options.out / "held_out.png")


if __name__ == "__main__":
    sys.exit(tell(work))
