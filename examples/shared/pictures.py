"""Pictures for training: a data set's items by batch, in an order that a seed fixes.

The processes that draw built-in scenes import this module, so PyTorch is not imported with it.
"""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from multiprocessing import Pipe, get_context
from pathlib import Path

import numpy as np

from .. import data

WHAT = {"target": "properties of objects to predict"}


class Pictures:
    """Arrays of a data set's first `count` items (None: all): `fields`, such as "image", "target".

    An item is read when it is asked for, in training a batch ahead, and kept where all of them fit
    in memory. Many are read by processes of their own, beside the training.

    endless : each sample of a training is a picture of its own, as none comes to the last.
    """

    MOST_BYTES = 4 << 30
    FEW = 1000  # are read sooner than processes have started
    MOST_READERS = 16

    def __init__(self, dataset, fields=("image",), count=None, endless=False):
        self.dataset, self.fields, self.endless = dataset, tuple(fields), endless
        self.thread, self.ahead, self.arrays = ThreadPoolExecutor(1), {}, None
        self.count = len(dataset) if count is None else min(count, len(dataset))
        first = _arrays(dataset[0], self.fields)
        if self.count * sum(a.nbytes for a in first) <= self.MOST_BYTES:
            self.arrays = tuple(np.empty((self.count, *a.shape), a.dtype) for a in first)
            self.there = np.zeros(self.count, bool)

    def __len__(self):
        return self.count

    @cached_property
    def readers(self):
        """Connections to processes that read; those of torchrun share the cores."""
        asked = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if asked else os.cpu_count() or 1
        number = cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1
        own = self.dataset, self.fields
        return [_started(*own) for _ in range(max(1, min(number, self.MOST_READERS)))]

    def read(self, indices):
        """An array (n, ...) of each field."""
        if self.arrays is None:
            return self._some(indices)
        if new := [i for i in dict.fromkeys(indices) if not self.there[i]]:
            for array, values in zip(self.arrays, self._some(new)):
                array[new] = values
            self.there[new] = True
        return tuple(a[indices] for a in self.arrays)

    def _some(self, indices):
        if self.count <= self.FEW:
            items = [_arrays(self.dataset[i], self.fields) for i in indices]
        else:
            share = -(-len(indices) // len(self.readers))
            asked = list(zip(self.readers, range(0, len(indices), share)))
            for reader, first in asked:
                reader.send(indices[first : first + share])
            answers = [reader.recv() for reader, _ in asked]
            for error in (answer for answer in answers if isinstance(answer, Exception)):
                raise error
            items = [item for answer in answers for item in answer]
        return tuple(map(np.stack, zip(*items)))

    def batch(self, indices, following=None):
        """As `read`; `following` will be asked for next."""
        key = tuple(indices)
        ready = self.ahead.pop(key, None) or self.thread.submit(self.read, list(key))
        batch = ready.result()
        if following is not None:
            self.ahead = {tuple(following): self.thread.submit(self.read, list(following))}
        return batch

    def train_batch(self, seed, indices, step):
        """The batch of the samples `indices`, a range, of an endless sequence: see `order`.

        Those `step` further on are asked for next.
        """
        following = range(indices.start + step, indices.stop + step)
        if not self.endless:
            indices, following = order(self, seed, indices), order(self, seed, following)
        return self.batch(indices, following)

    def in_batches(self, size):
        """(indices, arrays of the fields) of all pictures, `size` at a time."""
        for first in range(0, len(self), size):
            indices = range(first, min(first + size, len(self)))
            yield indices, self.batch(list(indices))


def _arrays(item, fields):
    return tuple(np.asarray(item[name]) for name in fields)


def _started(*own):
    """A connection to a process that reads; it ends when this one does, however that ends."""
    here, there = Pipe()
    get_context("spawn").Process(target=_read, args=(there, *own), daemon=True).start()
    there.close()
    return here


def _read(asked, dataset, fields):
    """In a process of its own: answer indices with the items' arrays, or with the error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training
    with suppress(EOFError, OSError):
        while True:
            indices = asked.recv()
            try:
                asked.send([_arrays(dataset[i], fields) for i in indices])
            except Exception as error:
                asked.send(error)


def open_pictures(config, split, count=None, fields=("image",), optional=()):
    """The first `count` pictures (None: all) of a split of the configuration's data set.

    `optional` fields follow where it has them.
    """
    options = config.data_options()
    endless = config.data is None and count is None and config.pictures == 0
    if endless:
        options |= {"count": sys.maxsize, "seed": config.seed}
    elif config.data is None:
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
    return Pictures(dataset, fields, count, endless)


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
