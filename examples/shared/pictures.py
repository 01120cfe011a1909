"""Pictures for training: a data set's items by batch, in an order that a seed fixes.

The processes that draw built-in scenes import this module, so PyTorch is not imported with it.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .. import data

WHAT = {"target": "properties of objects to predict"}


class Pictures:
    """Arrays of a data set's first `count` items (None: all): `fields`, such as "image", "target".

    Where they are few enough for memory they are read once, at the first batch, by several
    processes where that pays; else by threads when asked for, a batch ahead.
    """

    MOST_BYTES = 4 << 30
    FEW = 1000  # are read sooner than processes have started

    def __init__(self, dataset, fields=("image",), quiet=False, count=None):
        self.dataset, self.fields, self.pool = dataset, tuple(fields), ThreadPoolExecutor(2)
        self.ahead, self.quiet, self.arrays = {}, quiet, None
        self.count = len(dataset) if count is None else min(count, len(dataset))
        self.first = _arrays(dataset[0], self.fields)
        size = self.count * sum(a.nbytes for a in self.first)
        self.in_memory = self.count <= self.FEW or size <= self.MOST_BYTES

    def __len__(self):
        return self.count

    def _all(self):
        n = self.count
        if n <= self.FEW:
            return self._some(range(n))
        arrays = tuple(np.empty((n, *a.shape), a.dtype) for a in self.first)
        asked = hasattr(os, "sched_getaffinity")
        workers = len(os.sched_getaffinity(0)) if asked else os.cpu_count() or 1
        own = (self.dataset, self.fields)
        with get_context("spawn").Pool(min(workers, 16), _hold, own) as pool:
            items = pool.imap(_read, range(n), chunksize=64)
            bar = tqdm(items, total=n, desc="pictures", disable=self.quiet, leave=False)
            for i, item in enumerate(bar):
                for array, value in zip(arrays, item):
                    array[i] = value
        return arrays

    def read(self, indices):
        if self.in_memory and self.arrays is None:
            self.arrays = self._all()
        if self.arrays is None:
            return self._some(indices)
        return tuple(a[indices] for a in self.arrays)

    def _some(self, indices):
        items = self.pool.map(self.dataset.__getitem__, indices)
        return tuple(map(np.stack, zip(*(_arrays(item, self.fields) for item in items))))

    def batch(self, indices, following=None):
        """An array (n, ...) of each field, of `indices`; `following` will be asked for next."""
        key = tuple(indices)
        ready = self.ahead.pop(key, None)
        batch = ready.result() if ready else self.read(list(key))
        if following is not None and not self.in_memory:
            self.ahead = {tuple(following): self.pool.submit(self.read, list(following))}
        return batch

    def train_batch(self, seed, indices, step):
        """The batch of the samples `indices`, a range, of the endless sequence of `order`.

        Those `step` further on are asked for next.
        """
        following = range(indices.start + step, indices.stop + step)
        return self.batch(order(self, seed, indices), order(self, seed, following))

    def in_batches(self, size):
        """(indices, arrays of the fields) of all pictures, `size` at a time."""
        for first in range(0, len(self), size):
            indices = range(first, min(first + size, len(self)))
            yield indices, self.batch(list(indices))


def _arrays(item, fields):
    return tuple(np.asarray(item[name]) for name in fields)


_held = ()  # in a reading process: the data set and the fields


def _hold(*held):
    global _held
    _held = held


def _read(index):
    dataset, fields = _held
    return _arrays(dataset[index], fields)


def open_pictures(config, split, count=None, quiet=False, fields=("image",), optional=()):
    """The first `count` pictures (None: all) of a split of the configuration's data set.

    `optional` fields follow where it has them.
    """
    options = config.data_options()
    if config.data is None:
        options["count"] = config.pictures if count is None else count
    dataset = data.open_dataset(
        config.data, config.dataset, split, config.image_size, cache=config.cache, **options
    )
    if len(dataset) == 0:
        raise ValueError(f"{config.data} has no picture in split {split}")
    there = dataset[0]
    missing = [name for name in fields if name not in there]
    if missing:
        raise ValueError(f"{config.data} has no {WHAT[missing[0]]}")
    fields = (*fields, *(name for name in optional if name in there))
    return Pictures(dataset, fields, quiet, count)


def tell_held_out(config, split):
    """A line on stderr where a split of the configuration's data set is what training reads."""
    if config.data is None or split == "train":
        return
    reader = data.find_reader(config.data, config.dataset)
    if reader is data.READERS["folder"]:
        folders = {reader.folder(Path(config.data), name) for name in (split, "train")}
        if len(folders) == 1:
            print(
                f"note: {config.data} has no folder {split}/, so training pictures are evaluated; "
                f"hold some out in {split}/",
                file=sys.stderr,
            )


def order(pictures, seed, indices):
    """The pictures of the samples `indices` of an endless sequence: an epoch is a permutation."""
    n = len(pictures)
    epochs = {i // n: None for i in indices}
    for epoch in epochs:
        epochs[epoch] = np.random.default_rng([seed, epoch]).permutation(n)
    return [int(epochs[i // n][i % n]) for i in indices]


def seed_of(seed, index):
    """Of a sample's initial slots."""
    return (seed * 1_000_003 + index * 7919 + 12345) % (2**62)


def eval_seeds(indices, draw=0):
    """Of the initial slots of evaluated pictures, for the draw-th time; training has others."""
    return [seed_of(1_000_000 + draw, i) for i in indices]


def to_input(images, device):
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [-1, 1]."""
    import torch

    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
