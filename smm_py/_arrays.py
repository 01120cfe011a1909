"""Checks of array arguments, and bfloat16 in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from . import _core

Array = np.ndarray[Any, Any]
# Type checkers let the value be used unasked; that of `X | None` they would not.
MaybeNone: TypeAlias = Any
Shape = tuple[int, ...]


def check_array(name: str, value: object, dtype: str) -> None:
    # the mask of a masked array would be lost
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a {dtype} array, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be a {dtype} array, got an array of {value.dtype}")


def shaped(name: str, value: Array, shape: Shape, single: bool) -> Array:
    """The array of that shape; of a single image, it may lack the first dimension."""
    if value.shape != shape and not (single and value.shape == shape[1:]):
        raise ValueError(
            f"{name} must have shape {shape[1:] if single else shape}, got {value.shape}"
        )
    return value.reshape(shape)


def plain(value: Array) -> Array:
    """The array as the core reads it, C-contiguous and aligned; a copy where it is not."""
    return value if value.flags.c_contiguous and value.flags.aligned else np.array(value, order="C")


def first_nonfinite(value: Array) -> Shape | None:
    """Index of the first infinity or NaN of an array, or None."""
    at = _core.first_nonfinite(plain(value))
    return None if at < 0 else tuple(map(int, np.unravel_index(at, value.shape)))


def check_finite(name: str, value: Array) -> None:
    at = first_nonfinite(value)
    if at is not None:
        shown = from_bfloat16(np.array(value[at])) if value.dtype == np.uint16 else value[at]
        raise ValueError(f"{name} must be finite, got {shown} at index {at}")


def check_mask(name: str, mask: Array | None, shape: Shape, single: bool) -> Array | None:
    if mask is None:
        return None
    check_array(name, mask, "bool")
    mask = shaped(name, mask, shape, single)
    empty = np.flatnonzero(~mask.any(1))
    if len(empty):
        what = "a real input" if name == "mask" else "an active slot"
        raise ValueError(f"{name} must leave every image {what}, got none in image {empty[0]}")
    return plain(mask)


def check_indices(indices: Array, mask: Array | None, inputs: int) -> None:
    wrong = (indices < 0) | (indices >= inputs)
    if mask is not None:
        wrong |= ~np.take_along_axis(mask, indices.clip(0, inputs - 1), axis=1)
    if wrong.any():
        at = tuple(map(int, np.argwhere(wrong)[0]))
        raise_index(int(indices[at]), at, inputs, mask is not None)


def raise_index(index: int, at: Sequence[int], inputs: int, masked: bool) -> None:
    raise ValueError(
        f"init['indices'] must be rows of real inputs, from 0 to {inputs - 1}"
        f"{' and not masked' if masked else ''}, got {index} at index {at}"
    )


def check_prior(prior: Array, slot_mask: Array | None) -> None:
    if (prior < 0).any():
        at = tuple(map(int, np.argwhere(prior < 0)[0]))
        raise ValueError(f"init['prior'] must be at least 0, got {prior[at]} at index {at}")
    empty = np.flatnonzero(~(prior > 0 if slot_mask is None else (prior > 0) & slot_mask).any(1))
    if len(empty):
        raise ValueError(
            "init['prior'] must be above 0 for an active slot of every image, got none in image "
            f"{empty[0]}"
        )


def real_array(name: str, value: Any) -> Array:
    """float32 numbers as they are, other real ones, and lists of them, as float64."""
    if isinstance(value, np.ma.MaskedArray):  # its mask would be lost
        raise TypeError(f"{name} must be an array, got {type(value).__name__}")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{name} must be an array of real numbers, got {error}") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be an array of real numbers, got one of {array.dtype}")
    return array if array.dtype == np.float32 else array.astype(np.float64, copy=False)


def check_seed(seed: object) -> int:
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an int, got {seed!r} ({type(seed).__name__})")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    return int(seed)


def to_bfloat16(x: Array) -> Array:
    """Round a float32 array to bfloat16, the upper half of a float32 (nearest, ties to even).

    For modules with `bfloat16_inputs`.

    Parameters
    ----------
    x : float32 array of any shape

    Returns
    -------
    uint16 array
        The bits of the bfloat16 numbers, in x's shape.
    """
    check_array("x", x, "float32")
    bits = plain(x).view(np.uint32)
    nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(x), 0x7FC0, nearest).astype(np.uint16)


def from_bfloat16(x: Array) -> Array:
    """The float32 array of the bfloat16 numbers whose bits a uint16 array holds."""
    check_array("x", x, "uint16")
    return (x.astype(np.uint32) << 16).view(np.float32)
