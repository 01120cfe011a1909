"""Training and evaluation of set prediction."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from .. import data, metrics
from ..training import Loop, rank_and_world
from .matching import set_loss
from .model import SetPredictor


class Pictures:
    """Pictures (uint8) and targets of a data set, in memory where they are few enough.

    Built-in scenes are drawn once, by several processes; files are read by threads when asked for,
    a batch ahead.
    """

    MOST_BYTES = 4 << 30

    def __init__(self, dataset, quiet=False):
        self.dataset, self.pool = dataset, ThreadPoolExecutor(2)
        self.ahead = {}
        self.images = self.targets = None
        first = dataset[0]
        if first["image"].nbytes * len(dataset) <= self.MOST_BYTES:
            self._fill(first, quiet)

    def __len__(self):
        return len(self.dataset)

    def _fill(self, first, quiet):
        n = len(self.dataset)
        self.images = np.empty((n, *first["image"].shape), np.uint8)
        self.targets = np.empty((n, *first["target"].shape), np.float32)
        workers = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)
        with get_context("spawn").Pool(workers) as pool:
            items = pool.imap(_read, ((self.dataset, i) for i in range(n)), chunksize=64)
            for i, (image, target) in enumerate(tqdm(items, total=n, desc="pictures", disable=quiet, leave=False)):
                self.images[i], self.targets[i] = image, target

    def read(self, indices):
        if self.images is not None:
            return self.images[indices], self.targets[indices]
        items = list(self.pool.map(self.dataset.__getitem__, indices))
        return np.stack([i["image"] for i in items]), np.stack([i["target"] for i in items])

    def batch(self, indices, following=None):
        """Images (n, H, W, 3) and targets of `indices`; `following` will be asked for next."""
        key = tuple(indices)
        ready = self.ahead.pop(key, None)
        batch = ready.result() if ready else self.read(list(key))
        if following is not None and self.images is None:
            self.ahead = {tuple(following): self.pool.submit(self.read, list(following))}
        return batch


def _read(job):
    dataset, index = job
    item = dataset[index]
    return item["image"], item["target"]


def open_pictures(config, split, count=None, quiet=False):
    options = {}
    if config.data is None:
        options = dict(min_objects=config.min_objects, max_objects=config.max_objects, seed=0,
                       count=config.pictures if count is None else count)
    dataset = data.open_dataset(config.data, config.dataset, split, config.image_size, **options)
    if len(dataset) == 0:
        raise ValueError(f"{config.data} has no picture in split {split}")
    if "target" not in dataset[0]:
        raise ValueError(f"{config.data} has no properties of objects to predict")
    if count is not None and count < len(dataset):
        dataset = First(dataset, count)
    return Pictures(dataset, quiet)


class First:
    """The first pictures of a data set."""

    def __init__(self, dataset, count):
        self.dataset, self.count = dataset, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.dataset[index]


def to_input(images, device):
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def order(pictures, seed, indices):
    """Which pictures the samples `indices` of the endless sequence are: a new permutation each epoch."""
    n = len(pictures)
    epochs = {i // n: None for i in indices}
    for epoch in epochs:
        epochs[epoch] = np.random.default_rng([seed, epoch]).permutation(n)
    return [int(epochs[i // n][i % n]) for i in indices]


def seed_of(seed, index):
    """Of a sample's initial slots."""
    return (seed * 1_000_003 + index * 7919 + 12345) % (2**62)


def build_model(config, device="cpu"):
    torch.manual_seed(config.seed)
    if config.model == "reference":
        from .reference import ReleasedPredictor
        model = ReleasedPredictor()
    else:
        model = SetPredictor(config)
    if config.weights:
        load_weights(model, config.weights)
    return model.to(device)


def load_weights(model, path):
    """Weights of a `.safetensors` file; ValueError, naming the file, if it is damaged or of another model."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights {path} are missing")
    try:
        weights = load_file(path)
    except Exception as error:
        raise ValueError(f"weights {path} cannot be read: {error}") from error
    weights = model.rename(weights) if hasattr(model, "rename") else weights
    own = model.state_dict()
    wrong = [k for k in own if k not in weights or weights[k].shape != own[k].shape]
    if wrong or set(weights) - set(own):
        raise ValueError(f"weights {path} are of another model; first difference: "
                         f"{(wrong or sorted(set(weights) - set(own)))[0]}")
    model.load_state_dict(weights)


def train(config, out, device, model=None):
    """Train as configured into the folder `out`, another model than the configuration's if given; returns it."""
    rank, _ = rank_and_world()
    model = build_model(config, device) if model is None else model
    pictures = open_pictures(config, "train", quiet=rank > 0)
    check = open_pictures(config, "val", count=100, quiet=rank > 0)

    def loss(trained, step, indices):
        images, targets = pictures.batch(order(pictures, config.seed, indices),
                                         order(pictures, config.seed, range(indices.stop, indices.stop + len(indices))))
        seeds = [seed_of(config.seed, i) for i in indices]
        prediction = trained(to_input(images, device), seeds)
        return set_loss(prediction, torch.from_numpy(targets).to(device), config.empty_rows)

    def progress(model):
        values = average_precision(model, check, config, draws=1)[0]
        return {"ap_inf": 100 * values[float("inf")], "ap_0.5": 100 * values[0.5]}

    def fixed(steps):
        if rank == 0:
            config.save(out / "config.json")

    loop = Loop(model, config, out, loss, progress, fixed)
    loop.run()
    return model


@torch.no_grad()
def predict(model, pictures, config, draw=0, batch_size=50):
    """Predictions (n, K, 19) of all pictures from the draw-th initial slots, as a float32 array."""
    model.eval()
    device = next(model.parameters()).device
    parts = []
    for first in range(0, len(pictures), batch_size):
        indices = range(first, min(first + batch_size, len(pictures)))
        images, _ = pictures.batch(list(indices))
        seeds = [seed_of(1_000_000 + draw, i) for i in indices]
        parts.append(model(to_input(images, device), seeds, num_iters=config.eval_iters).float().cpu().numpy())
    model.train()
    return np.concatenate(parts)


def average_precision(model, pictures, config, draws):
    """AP by threshold, for each of several draws of the initial slots."""
    _, targets = pictures.batch(list(range(len(pictures))))
    return [metrics.average_precision(predict(model, pictures, config, draw), targets) for draw in range(draws)]
