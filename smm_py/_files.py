"""Reading and writing `.safetensors` with NumPy alone.

The format (https://github.com/huggingface/safetensors): a little-endian uint64 n, n bytes of JSON
{name: {"dtype", "shape", "data_offsets"}, "__metadata__": {str: str}}, then the arrays' bytes.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

import numpy as np

from ._arrays import Array

FilePath = str | os.PathLike[str]
WRITTEN: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
NAMES = {dtype: name for name, dtype in WRITTEN.items()}
# what is read: integers and bool as others may have them in a model; bfloat16 as two bytes
DTYPES: dict[str, np.dtype[Any]] = {
    **WRITTEN,
    **{f"{sign}{8 * n}": np.dtype(f"<{sign.lower()}{n}") for sign in "IU" for n in (1, 2, 4, 8)},
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("V2"),
    "BOOL": np.dtype("?"),
    "F8_E4M3": np.dtype("V1"),
    "F8_E5M2": np.dtype("V1"),
}


def write(path: FilePath, arrays: dict[str, Array], metadata: dict[str, str]) -> None:
    """Write float32 or float64 arrays; the file is complete or as it was before."""
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, array in arrays.items():
        end = offset + array.nbytes
        header[name] = {
            "dtype": NAMES[array.dtype.newbyteorder("<")],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = os.path.realpath(os.fsdecode(path))  # what a link points to, not the link
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"folder {folder} for {name} is missing")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f"{path} is no file that could be replaced")
    temporary = f"{path}.{os.urandom(4).hex()}"
    try:
        with open(temporary, "xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for array in arrays.values():
                file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            told = f"{path} cannot be written: {error.strerror or error}"
            raise (OSError(error.errno, told) if error.errno else OSError(told)) from error
        raise


def read(path: FilePath) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays and metadata of a file; ValueError for one that is cut or damaged."""
    if os.path.isdir(path):
        told = "is a folder: give the file in it, which of a run is its model.safetensors"
        raise IsADirectoryError(f"{os.fsdecode(path)} {told}")
    with open(os.fsdecode(path), "rb") as file:
        content = file.read()
    try:
        return _parse(content)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(
            f"{os.fspath(path)} is not a complete .safetensors file: {error}"
        ) from error


def _parse(content: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError(f"its header should have {length} bytes, the file has {len(content)}")
    header = json.loads(content[8 : 8 + length].decode(), object_pairs_hook=_distinct)
    if not isinstance(header, dict):
        raise ValueError(f"its header is no JSON object but {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError(f"its __metadata__ is no JSON object but {type(metadata).__name__}")
    data = memoryview(content)[8 + length :]
    arrays, places = {}, []
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"{name} has dtype {entry['dtype']}, expected one of {', '.join(DTYPES)}"
            )
        dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= len(data) or end - begin != dtype.itemsize * math.prod(shape):
            raise ValueError(f"{name} lies at bytes {begin} to {end} of {len(data)}")
        places.append((begin, end))
        arrays[name] = (
            np.frombuffer(data[begin:end], dtype).reshape(shape).astype(dtype.newbyteorder("="))
        )
    places.sort()
    if [begin for begin, _ in places] + [len(data)] != [0] + [end for _, end in places]:
        raise ValueError(f"its arrays do not fill its {len(data)} bytes of data one after another")
    return arrays, metadata


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name stands twice in its header")
    return values
