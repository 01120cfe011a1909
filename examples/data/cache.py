"""A cache of decoded pictures, masks and targets in memory-mapped files, complete or absent.

    DIR/<data set>-<split>-<size>-<key>/{image,mask,target}.npy, items.json

The key is made of the data set's folder, split, size and options and of each file's length and
time, so a cache whose data changed is not found. It is written beside its place and renamed when
whole. Processes that want the same cache wait for the first of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import warnings
import weakref
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..shared.files import cannot_be_written
from .fields import load_json

FORM = 1  # of the files and of the readers' results: a change makes every cache new


def cached(reader, folder=None):
    """The data set of a reader through a cache below `folder`, written first if it is not there.

    Pictures that cannot be read are left out: a RuntimeWarning says how many, `skipped` holds each
    one's error. Without a folder the cache is a temporary one that ends with the data set (for
    readers without random access).

    Raises ValueError where no picture could be read, or where they differ in shape (give `size`).
    """
    if folder is None:
        temporary = Path(tempfile.mkdtemp(prefix="smm_py_data_"))
        try:
            dataset = cached(reader, temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        weakref.finalize(dataset, remove, temporary, os.getpid())
        return dataset
    place = Path(folder) / _place(reader)
    place.parent.mkdir(parents=True, exist_ok=True)
    with _locked(place):
        if not place.is_dir():
            write(reader, place)
    return Cached(place, reader)


def remove(folder, owner):
    if os.getpid() == owner:  # a forked child leaves it to its parent
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(place):
    with open(place.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the process ends, however it ends
        yield


def _place(reader):
    stamps = hashlib.sha256()
    for path in reader.files():
        stat = path.stat() if path.is_file() else None
        stamps.update(f"{path}\0{stat and (stat.st_size, stat.st_mtime_ns)}\n".encode())
    which = [reader.name, str(reader.root.resolve()), reader.split, reader.size, reader.options]
    key = json.dumps([FORM, *which, stamps.hexdigest()])
    key, split = hashlib.sha256(key.encode()).hexdigest()[:16], re.sub(r"\W", "_", reader.split)
    return f"{reader.name}-{split}-{reader.size or 'stored'}-{key}"


class Cached:
    """A data set in a cache; items are those of the reader, as copies that may be written to."""

    def __init__(self, place, reader):
        self.place, self.name, self.root = place, reader.name, reader.root
        self.split, self.size = reader.split, reader.size
        self._open()
        if self.skipped:
            count = f"{len(self.skipped)} of {len(self) + len(self.skipped)} pictures"
            where = f"of {self.root} ({self.split}) cannot be read and are left out"
            message = f"{count} {where}; the first: {self.skipped[0]}"
            warnings.warn(message, RuntimeWarning, stacklevel=3)

    def _open(self):
        try:
            content = load_json(self.place / "items.json")
            self.ids, self.skipped = content["ids"], content["skipped"]
            self.columns = {
                key: np.load(self.place / f"{key}.npy", mmap_mode="r") for key in content["columns"]
            }
            if any(len(column) != len(self.ids) for column in self.columns.values()):
                raise ValueError("its parts differ in length")
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"cache {self.place} cannot be read ({error}); remove it to have it rewritten"
            raise ValueError(message) from error

    def __getstate__(self):  # another process maps the files itself
        opened = ("columns", "ids", "skipped")
        return {key: value for key, value in self.__dict__.items() if key not in opened}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._open()

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"index must be from 0 to {len(self) - 1}, got {index}")
        arrays = {key: np.array(column[index]) for key, column in self.columns.items()}
        return {**arrays, "id": self.ids[index]}


def write(reader, place):
    partial = place.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir()
    try:
        with ExitStack() as files:
            content = _write_columns(reader, partial, files)
            file = files.enter_context(open(partial / "items.json", "w"))
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(place)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise cannot_be_written(f"cache {place}", error) from error
        raise


def _write_columns(reader, folder, files):
    """Write every array of every item; returns the content of items.json."""
    columns, ids, skipped = {}, [], []
    total = None if reader.ids is None else len(reader)
    items, what = _readable(reader, skipped), f"cache in {folder.parent}"
    for item in tqdm(items, desc=what, total=total, disable=None, leave=False):
        name = item.pop("id")
        if not ids:
            for key, array in item.items():
                file = files.enter_context(open(folder / f"{key}.npy", "wb"))
                columns[key] = _Column(file, array)
        if set(item) != set(columns):
            raise ValueError(
                f"{name} of {reader.root} must have {', '.join(columns)} as all before it, "
                f"got {', '.join(item)}"
            )
        for key, array in item.items():
            columns[key].append(array, name)
        ids.append(name)
    if skipped and not ids:
        count = f"none of the {len(skipped)} pictures of {reader.root}"
        raise ValueError(f"{count} can be read; the first: {skipped[0]}")
    for column in columns.values():
        column.finish()
    return {"columns": list(columns), "ids": ids, "skipped": skipped}


def _readable(reader, skipped):
    """The items in order; errors go to `skipped`, but a stream's error ends it."""
    if reader.ids is None:
        yield from reader
        return
    for index in range(len(reader)):
        try:
            item = reader[index]
        except (OSError, ValueError) as error:
            skipped.append(str(error))
            continue
        yield item


class _Column:
    """An .npy file of arrays of one shape and dtype, whose number is known only at the end."""

    def __init__(self, file, first):
        self.file, self.shape, self.dtype, self.count = file, first.shape, first.dtype, 0
        self._header()

    def _header(self):  # NumPy leaves room in it for the first axis to grow to any length
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False}
        header["shape"] = (self.count, *self.shape)
        np.lib.format.write_array_header_1_0(self.file, header)

    def append(self, array, name):
        if (array.shape, array.dtype) != (self.shape, self.dtype):
            raise ValueError(
                f"pictures must be of one shape, {self.shape} as the first, for a cache: "
                f"{name} has {array.shape}; give a size"
            )
        self.file.write(np.ascontiguousarray(array).data)
        self.count += 1

    def finish(self):
        self.file.seek(0)
        self._header()
        self.file.flush()
        os.fsync(self.file.fileno())
