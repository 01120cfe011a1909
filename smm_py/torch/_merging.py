"""Slots that count, of tensors; the formulas are those of `smm_py._merging`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _merging
from .._merging import THRESHOLDS, By, Merged


def merge_slots(
    mean: Tensor,
    variance: Tensor,
    mass: Tensor,
    attention: Tensor | None = None,
    *,
    by: By = "distance",
    threshold: float | None = None,
    least: float = 0.0,
) -> Merged:
    """As `smm_py.merge_slots`, of tensors on any device.

    Which slots are merged is decided on the CPU and has no gradient. The merged mean, variance and
    mass have those of the groups held fixed. A NaN is an error, as in NumPy.
    """
    given = {"mean": mean, "variance": variance, "mass": mass, "attention": attention}
    arrays = {name: array for name, array in given.items() if array is not None}
    for name, array in arrays.items():
        if not isinstance(array, Tensor) or not array.is_floating_point():
            got = array.dtype if isinstance(array, Tensor) else type(array).__name__
            raise TypeError(f"{name} must be a tensor of floating-point numbers, got {got}")
        if not torch.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    _merging.check(by, arrays)
    limit = THRESHOLDS[by] if threshold is None else threshold
    with torch.no_grad():
        like = _merging.dissimilarity(torch, by, **arrays) <= limit
        found = _merging.groups(like.cpu().numpy(), mass.cpu().numpy(), least)
    group = torch.from_numpy(found).to(mean.device)
    slots = torch.arange(group.shape[1], device=mean.device)
    return _merging.moments(torch, slots, group, mean, variance, mass)
