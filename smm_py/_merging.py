"""Slots that count: empty ones dropped, those of one object merged; in NumPy and in PyTorch."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from ._arrays import Array, check_finite, real_array

By = Literal["distance", "likelihood", "overlap"]
THRESHOLDS = {"distance": 0.15, "likelihood": 0.05, "overlap": 0.9}


class Merged(NamedTuple):
    """What `merge_slots` returns: arrays, or tensors; B images, K slots of width D.

    Attributes
    ----------
    mean, variance : (B, K, D)
        Of the merged mixture, each group's in the place of the slot that stands for it. Other slots
        keep what they had.
    mass : (B, K)
        Of each group, in the same places; 0 elsewhere. With `slot_mask = mass > 0`, mean and
        variance are an initial state to go on from.
    group : (B, K) int64
        The slot that stands for each; -1 for those dropped.
    count : (B,) int64
        Groups.
    """

    mean: Any
    variance: Any
    mass: Any
    group: Any
    count: Any


def merge_slots(
    mean: Array,
    variance: Array,
    mass: Array,
    attention: Array | None = None,
    *,
    by: By = "distance",
    threshold: float | None = None,
    least: float = 0.0,
) -> Merged:
    """Drop empty slots, and merge those of one object into one Gaussian.

    Slots are taken by falling mass. Each joins the most massive of those before it that stand for a
    group and are like it; if there is none, it stands for a group of its own.

    Parameters
    ----------
    mean, variance : (B, K, D)
        Of the slots, as a mixture's `out.mean` and `out.variance`.
    mass : (B, K)
        What each slot holds: `out.attention.sum(1)`, or its prior.
    attention : (B, N, K), optional
        Responsibilities, or masks; needed with by="overlap", where variances may be 0.
    by : {"distance", "likelihood", "overlap"}
        What makes two slots alike: the Bhattacharyya distance of their Gaussians, per channel; the
        log-likelihood that is lost if one Gaussian stands for both, per input and channel; 1 less
        the cosine of their columns of `attention`.
    threshold : float, optional
        The largest such value of slots that are alike; 0.15, 0.05 and 0.9 if not given.
    least : float
        Slots with at most this share of the image's mass are dropped.

    Returns
    -------
    Merged
        Merging keeps the mass, mean and variance of the whole that a group stands for.

    Raises
    ------
    TypeError, ValueError
        For a wrong type, shape or value, naming the argument.

    Notes
    -----
    It takes K² D operations an image, or K² N with by="overlap". The loss of likelihood is that of
    Runnalls (2007, "Kullback-Leibler approach to Gaussian mixture reduction", eq. 21).

    It fails where Gaussians say nothing of objects. Slots that share a background region by region
    have means as far apart as objects have, since features hold places. Two objects that
    touch and look alike may be nearer than two slots of one large object. The thresholds are of
    trained mixtures with `norm_kv`; other features need their own.

    Examples
    --------
    >>> import numpy as np, smm_py
    >>> mean, mass = np.array([[[0.0], [0.1], [5.0], [9.0]]]), np.array([[3.0, 1.0, 2.0, 0.0]])
    >>> merged = smm_py.merge_slots(mean, np.ones((1, 4, 1)), mass)
    >>> merged.group.tolist(), merged.count.tolist(), float(merged.mean[0, 0, 0])
    ([[0, 0, 2, -1]], [2], 0.025)
    """
    given = {"mean": mean, "variance": variance, "mass": mass, "attention": attention}
    arrays = {name: real_array(name, a) for name, a in given.items() if a is not None}
    for name, array in arrays.items():
        check_finite(name, array)
    check(by, arrays)
    limit = THRESHOLDS[by] if threshold is None else threshold
    group = groups(dissimilarity(np, by, **arrays) <= limit, arrays["mass"], least)
    return moments(np, np.arange(group.shape[1]), group, **arrays)


def check(by: object, arrays: dict[str, Any]) -> None:
    """ValueError, naming the argument, for arrays that are of no mixture."""
    if by not in get_args(By):
        raise ValueError(f"by must be one of {', '.join(get_args(By))}, got {by!r}")
    if by == "overlap" and "attention" not in arrays:
        raise ValueError("attention must be given with by='overlap', got None")
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    shape = shapes["mean"]
    if len(shape) != 3:
        raise ValueError(f"mean must have shape (B, K, D), got {shape}")
    inputs = shapes.get("attention", (0, 0))[1:2]
    wanted = {"variance": shape, "mass": shape[:2], "attention": (shape[0], *inputs, shape[1])}
    for name, got in shapes.items():
        if got != wanted.get(name, shape):
            raise ValueError(f"{name} must have shape {wanted[name]}, got {got}")
    for name, array in arrays.items():
        if name != "mean" and (array < 0).any():
            raise ValueError(f"{name} must be at least 0, got {float(array.min())}")
    if by != "overlap" and not (arrays["variance"] > 0).all():
        raise ValueError(f"variance must be above 0 with by={by!r}, got 0")


def dissimilarity(
    xp: Any, by: By, mean: Any, variance: Any, mass: Any, attention: Any = None
) -> Any:
    """Of every two slots (B, K, K)."""
    if by == "overlap":
        product = xp.einsum("bnk,bnl->bkl", attention, attention)
        square = xp.einsum("bkk->bk", product)
        scale = (square[:, :, None] * square[:, None]) ** 0.5
        return 1 - product / xp.where(scale > 0, scale, xp.ones_like(scale))
    squared = (mean[:, :, None] - mean[:, None]) ** 2
    log = xp.log(variance).mean(-1)
    if by == "distance":
        share = xp.ones_like(log)[:, :, None] / 2
        both = (variance[:, :, None] + variance[:, None]) / 2
        apart = (squared / both).mean(-1) / 8
    else:
        total = mass[:, :, None] + mass[:, None]
        share = mass[:, :, None] / xp.where(total > 0, total, xp.ones_like(total))
        a = share[..., None]
        both = a * variance[:, :, None] + (1 - a) * variance[:, None] + a * (1 - a) * squared
        apart = 0.0
    apart += xp.log(both).mean(-1) / 2
    return apart - (share * log[:, :, None] + (1 - share) * log[:, None]) / 2


def groups(like: Array, mass: Array, least: float) -> Array:
    """The slot that stands for each (B, K), of the largest mass; -1 for those of too little."""
    image, slots = np.arange(len(mass)), np.arange(mass.shape[1])
    order = np.argsort(-mass, axis=1, kind="stable")
    kept = mass > least * mass.sum(1, keepdims=True)
    group = np.where(kept, slots, -1)
    stands = np.zeros(mass.shape, bool)
    for k in order.T:
        joins = np.where(stands & like[image, k], mass, -1)
        alone = joins.max(1) < 0
        stands[image, k] = alone & kept[image, k]
        group[image, k] = np.where(alone, group[image, k], joins.argmax(1))
    return np.where(kept, group, -1)


def moments(
    xp: Any, slots: Any, group: Any, mean: Any, variance: Any, mass: Any, attention: Any = None
) -> Merged:
    """The mixture of the groups, with the moments of what it is made of."""
    member = (group[:, None] == slots[:, None]) * xp.ones_like(mass)[:, None]  # (B, groups, slots)
    weight = member * mass[:, None]
    total = weight.sum(-1)
    stands = total > 0
    weight = weight / xp.where(stands, total, xp.ones_like(total))[..., None]
    center = xp.where(stands[..., None], weight @ mean, mean)
    spread = (mean - member.swapaxes(1, 2) @ center) ** 2
    around = xp.where(stands[..., None], weight @ (variance + spread), variance)
    return Merged(center, around, total, group, stands.sum(1))
