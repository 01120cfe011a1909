"""Initial states of the NumPy modules: drawn, and differentiated to what they are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ._arrays import Array, from_bfloat16
from ._spec import Spec, limits

VARIANCE_LEAST = {"float32": 1e-24, "float64": 1e-200}  # of the core, see params_tpl.h


def draw(
    spec: Spec,
    parameters: Mapping[str, Array],
    x: Array,
    mask: Array | None,
    slot_mask: Array | None,
    slots: int,
    rng: np.random.Generator,
    floors: Array | None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """An initial state, and the noise of those of its arrays that come from parameters.

    floors (B, D): of a Gaussian mixture's variances, or None.
    """
    shape = (x.shape[0], slots, spec.dim)
    state, noise = {}, {}
    if spec.start == "inputs":
        state["indices"] = draw_indices(rng, x.shape, mask, slot_mask, slots)
    first = spec.state_names[0]
    for name, (mu, logsigma) in spec.drawn_from.items():
        if name == first and "indices" in state:
            continue
        noise[name] = rng.standard_normal(shape).astype(spec.dtype)
        mean, log_std = (for_slots(n, parameters[n], slots) for n in (mu, logsigma))
        state[name] = mean + np.exp(log_std) * noise[name]
    if not spec.has_network and "indices" not in state:
        state[first] = rng.standard_normal(shape).astype(spec.dtype)
    if spec.kind == "gaussian_mixture":
        floor: Any = spec.var_floor if floors is None else floors
        variance = np.maximum(channel_variances(spec, x, mask) + floor, VARIANCE_LEAST[spec.dtype])
        log_std = 0.5 * np.log(variance)
        state["log_std"] = np.repeat(log_std[:, None], slots, axis=1).astype(spec.dtype)
    return state, noise


def draw_gradients(
    spec: Spec,
    parameters: Mapping[str, Array],
    noise: Mapping[str, Array],
    d_state: Mapping[str, Array],
) -> dict[str, Array]:
    """Through mu + exp(logsigma) noise to the parameters that the state was drawn from."""
    grads = {name: np.zeros_like(value) for name, value in parameters.items()}
    for name, (mu, logsigma) in spec.drawn_from.items():
        if name in noise:
            d = d_state[name]
            scaled = d * np.exp(parameters[logsigma]) * noise[name]
            for parameter, value in ((mu, d), (logsigma, scaled)):
                axes = (0, 1) if grads[parameter].ndim == 1 else 0
                grads[parameter] = value.sum(axes).astype(spec.dtype)
    return grads


def for_slots(name: str, value: Array, slots: int) -> Array:
    """The parameter, if it is one for all slots or has a row for each."""
    if value.ndim == 2 and value.shape[0] != slots:
        raise ValueError(
            f"num_slots must be {value.shape[0]}, as {name} has one row for each slot, got {slots}"
        )
    return value


def draw_indices(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    mask: Array | None,
    slot_mask: Array | None,
    slots: int,
) -> Array:
    """Distinct real inputs for the active slots of every image."""
    indices = np.zeros((shape[0], slots), np.int64)
    for b in range(shape[0]):
        real = np.arange(shape[1]) if mask is None else np.flatnonzero(mask[b])
        active = np.arange(slots) if slot_mask is None else np.flatnonzero(slot_mask[b])
        if len(active) > len(real):
            raise ValueError(
                f"num_slots must not exceed the real inputs that means start at: {len(active)} "
                f"active slots, {len(real)} real inputs in image {b}"
            )
        indices[b] = real[0]
        indices[b, active] = rng.choice(real, len(active), replace=False)
    return indices


def channel_variances(spec: Spec, x: Array, mask: Array | None) -> Array:
    """Variance of every channel over each image's real inputs, (B, D) float64."""
    x = from_bfloat16(x).astype(spec.dtype, copy=False) if spec.bfloat16_inputs else x
    variance = np.empty((x.shape[0], x.shape[2]))
    for b, rows in enumerate(x):
        rows = rows if mask is None else rows[mask[b]]
        mean = rows.mean(0, dtype=float)
        # in parts, so that no copy is large
        parts = (np.square(rows[i : i + 4096] - mean).sum(0) for i in range(0, len(rows), 4096))
        variance[b] = sum(parts) / len(rows)
    return variance


def variance_floors(spec: Spec, x: Array, mask: Array | None) -> Array | None:
    """What is added to the variances of each image (B, D), or None where the option says it.

    1e-12 of the channel's variance, in whatever unit it is; of the image's largest where the
    channel is constant; 1e-12 where all are.
    """
    if spec.kind != "gaussian_mixture" or spec.var_floor is not None:
        return None
    variance = channel_variances(spec, x, mask)
    largest = variance.max(1, keepdims=True)
    variance = np.where(variance > 0, variance, np.where(largest > 0, largest, 1.0))
    least, most = limits(spec.dtype)
    return np.clip(1e-12 * variance, least, most).astype(spec.dtype)
