"""What is timed: shapes, data, operations, and the core's results in float64."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

import smm_py


class Shape(NamedTuple):
    """B images, N inputs, K slots, D channels, H hidden width, T steps."""

    B: int
    N: int
    K: int
    D: int
    H: int
    T: int

    def __str__(self):
        return " ".join(f"{name}={value}" for name, value in self._asdict().items())


SHAPES = {
    "batch": Shape(16, 1024, 10, 64, 128, 5),
    "large": Shape(2, 16384, 11, 64, 128, 3),
    "wide": Shape(8, 576, 12, 192, 192, 7),
    "single": Shape(1, 1024, 10, 64, 128, 7),
    "odd": Shape(16, 1001, 13, 33, 50, 5),
}
KINDS = ("SlotMixture", "SlotAttention")


def flops(kind, shape, gradient):
    """(forward, backward): two FLOPs for each multiply-add that the mathematics needs on inputs.

    For each input, slot and channel a mixture needs 4 in a step (2 for the squared distance, 2 for
    the moments) and 11 in a step backward, Slot Attention 2 and 5. A projection needs its own once
    forward and twice backward. Slots alone, and whatever is computed twice, are not counted.
    """
    b, n, k, d, h, t = shape
    nkd, last = n * k * d, 1 if gradient == "implicit" else t
    if kind == "SlotMixture":
        projections, forward, backward = n * (2 * d * h + d * d), 4, 11
    else:
        projections, forward, backward = 2 * n * d * d, 2, 5
    return 2 * b * (projections + forward * nkd * t), 2 * b * (
        2 * projections + backward * nkd * last
    )


def products(kind, shape):
    """Of those, the products of a map with the inputs, whose limit bfloat16 doubles."""
    b, n, _, d, h, _ = shape
    forward = 2 * b * n * (2 * d * h + d * d if kind == "SlotMixture" else 2 * d * d)
    return forward, 2 * forward


class Problem:
    """A module, one batch, and the slots and gradients that the core finds in float64.

    Inputs lie around K centres and the mixture's temperature is D^-1/2. With a single cluster and
    temperature 1, the steps amplify rounding until float32 results differ in their second digit,
    whoever computes them. The time is the same.
    """

    def __init__(self, kind, shape, gradient="full"):
        self.kind, self.shape, self.gradient = kind, shape, gradient
        b, n, k, d, h, t = shape
        self.options = dict(dim=d, num_slots=k, num_iters=t, hidden_dim=h, gradient=gradient)
        if kind == "SlotMixture":
            self.options |= {"variant": "paper", "temperature": d**-0.5}
        self.module = getattr(smm_py, kind)(**self.options)
        rng = np.random.default_rng(0)

        def normal(*size):
            return rng.standard_normal(size, dtype="float32")

        centres = normal(b, k, d)
        self.x = normal(b, n, d)
        self.x += np.take_along_axis(centres, rng.integers(0, k, (b, n, 1)), 1)
        self.init = {name: normal(b, k, d) for name in self.module._spec.state_names}
        if "log_std" in self.init:
            self.init["log_std"] *= np.float32(0.1)
        self.d_slots = normal(b, k, d) / np.float32(b * k)
        self.params = {
            name: self.module.parameters[name] for name in self.module._parameters.core_names
        }

    def expected(self):
        """Slots, the gradient of x and of every parameter, in float64."""
        module = getattr(smm_py, self.kind)(**self.options, dtype="float64")
        module.parameters = {
            name: value.astype("float64") for name, value in self.module.parameters.items()
        }
        out = module(
            self.x.astype("float64"),
            init={name: value.astype("float64") for name, value in self.init.items()},
        )
        grads = module.backward(out, self.d_slots.astype("float64"))
        return out.slots, {name: grads[name] for name in ("x", *self.params)}
