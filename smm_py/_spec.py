"""What a module is: its options, checked once, its parameters' shapes and their initial values.

The NumPy modules and the PyTorch twins are built from the same `Spec`, so that their options, their
parameter names and their errors are the same.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace

import numpy as np

KINDS = ("slot_attention", "slot_mixture", "kmeans", "gaussian_mixture")
VARIANTS = ("paper", "reference")
PRIORS = ("learned", "uniform")
GRADIENTS = ("full", "implicit", "straight-through")
STARTS = ("gaussian", "inputs")
WEIGHT_INITS = ("em", "default")
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Spec:
    """Options of one module; `check` has passed for every instance.

    Attributes are named as the modules' arguments; `kind` is one of `KINDS`. `input_dim` and
    `scale` are resolved (never None).
    """

    kind: str
    dim: int
    num_slots: int
    num_iters: int
    hidden_dim: int = 128
    input_dim: int = None  # type: ignore[assignment]  # None: dim
    variant: str = "paper"
    slot_norm: bool = False
    norm_kv: bool = False
    input_mlp: bool = True
    prior: str = "learned"
    temperature: float = 1.0
    reduce: bool = True
    eps: float = 1e-8
    scale: float = None  # type: ignore[assignment]  # None: (dim / heads)^-1/2
    heads: int = 1
    qkv_bias: bool = False
    tol: float = 0.0
    recompute: bool = False
    bfloat16_inputs: bool = False
    weight_init: str = "em"
    start: str = "gaussian"
    gradient: str = "implicit"
    dtype: str = "float32"

    def __post_init__(self):
        def settle(name, value):  # NumPy's numbers as Python's, which files and graphs hold
            object.__setattr__(self, name, value)

        if self.input_dim is None:
            settle("input_dim", self.dim)
        for name in ("dim", "num_slots", "num_iters", "hidden_dim", "heads", "input_dim"):
            settle(name, count(name, getattr(self, name)))
        for name in (
            "slot_norm",
            "norm_kv",
            "input_mlp",
            "reduce",
            "qkv_bias",
            "recompute",
            "bfloat16_inputs",
        ):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
            settle(name, bool(getattr(self, name)))
        for name, choices in (
            ("kind", KINDS),
            ("variant", VARIANTS),
            ("prior", PRIORS),
            ("weight_init", WEIGHT_INITS),
            ("start", STARTS),
            ("gradient", GRADIENTS),
            ("dtype", DTYPES),
        ):
            choice(name, getattr(self, name), choices)
        if self.dim % self.heads:
            raise ValueError(f"heads must divide dim={self.dim}, got {self.heads}")
        if self.scale is None:
            settle("scale", (self.dim // self.heads) ** -0.5)
        for name in ("temperature", "eps", "scale"):
            settle(name, positive(name, getattr(self, name)))
        settle("tol", positive("tol", self.tol, zero=True))
        least, most = limits(self.dtype)
        for name in ("temperature", "eps", "scale"):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} must be at least {least:.2g} in {self.dtype}, got {getattr(self, name)!r}"
                )
            if getattr(self, name) > most:
                raise ValueError(
                    f"{name} must be a finite {self.dtype}, got {getattr(self, name)!r}"
                )
        if not self.has_network and self.input_dim != self.dim:
            raise ValueError(f"input_dim must equal dim={self.dim} here, got {self.input_dim}")
        if (
            self.is_mixture
            and self.variant == "paper"
            and not self.input_mlp
            and self.input_dim != self.dim
        ):
            raise ValueError(
                "input_dim must equal dim where input_mlp=False (the inputs are the "
                f"values): expected {self.dim}, got {self.input_dim}"
            )

    @property
    def is_mixture(self) -> bool:
        """True where a slot has a variance."""
        return self.kind in ("slot_mixture", "gaussian_mixture")

    @property
    def has_network(self) -> bool:
        """True where there are learned weights (not vanilla clustering)."""
        return self.kind in ("slot_attention", "slot_mixture")

    @property
    def is_reference(self) -> bool:
        return self.kind == "slot_mixture" and self.variant == "reference"

    @property
    def feature_dim(self) -> int:
        """Width of h, the vectors that keys are computed from."""
        mlp = self.kind == "slot_mixture" and self.input_mlp
        return self.dim if mlp else self.input_dim

    @property
    def slot_dim(self) -> int:
        """Last dimension of the module's output."""
        reduced = self.kind in ("slot_attention", "kmeans") or (self.has_network and self.reduce)
        return self.dim if reduced else 2 * self.dim

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("mean", "log_std") if self.is_mixture else ("slots",)

    def suits(self, dtype) -> bool:
        """Whether its options are numbers of that precision too."""
        least, most = limits(dtype)
        return all(least <= getattr(self, name) <= most for name in ("temperature", "eps", "scale"))

    def but(self, **changes) -> "Spec":
        """A copy with other options (checked again)."""
        return replace(self, **changes)


def limits(dtype) -> tuple[float, float]:
    """The least and the greatest number of full precision."""
    of = np.finfo(dtype)
    return float(of.tiny), float(of.max)


MOST = 2**24  # of a width, as in the core
MOST_OF = {"num_slots": 2**20, "num_iters": 2**20 - 1}


def count(name, value) -> int:
    """The number, if it is an integer from 1 to the most that the core takes; else an error."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    most = MOST_OF.get(name, MOST)
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")
    return int(value)


def positive(name, value, zero=False) -> float:
    """The number, if it is finite and above zero (or zero, where it may be); else an error."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    plain = (
        float(value)
        if isinstance(value, np.floating)
        else int(value)
        if isinstance(value, np.integer)
        else value
    )
    if not (0 < plain or zero and plain == 0) or not plain <= sys.float_info.max:
        raise ValueError(
            f"{name} must be finite and {'at least' if zero else 'greater than'} 0, got {value!r}"
        )
    return float(plain)


def choice(name, value, choices):
    """Raise unless `value` is one of the strings `choices`."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def parameter_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every learned array, in the order of the C core's table (smm.h)."""
    if not spec.has_network:
        return {}
    d, h, f = spec.dim, spec.hidden_dim, spec.feature_dim
    mixture, reference = spec.is_mixture, spec.is_reference
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def linear(name, outputs, inputs, bias=True):
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    if not mixture or spec.input_mlp:
        norm("norm_input", spec.input_dim)
    if mixture and spec.input_mlp:
        linear("mlp_input.0", h, spec.input_dim)
        linear("mlp_input.2", d, h)
    if mixture and (spec.norm_kv or reference):
        norm("norm_kv", f)
    linear("to_q", d, d, spec.qkv_bias)
    linear("to_k", d, f, spec.qkv_bias)
    if not mixture or reference:
        linear("to_v", d, f, spec.qkv_bias)
    if not mixture:
        norm("norm_slots", d)
    elif spec.slot_norm or reference:
        norm("norm_slots", 2 * d)
    shapes["gru.weight_ih"] = shapes["gru.weight_hh"] = (3 * d, d)
    shapes["gru.bias_ih"] = shapes["gru.bias_hh"] = (3 * d,)
    norm("norm_mlp", d)
    linear("mlp.0", h, d)
    linear("mlp.2", d, h)
    if reference and spec.reduce:
        linear("to_out.0", 2 * h, 2 * d)
        linear("to_out.2", d, 2 * h)
    elif mixture and spec.reduce:
        linear("to_out", d, 2 * d)
    for name in initial_state_names(spec):
        shapes[name] = (d,)
    return shapes


def initial_state_names(spec: Spec) -> tuple[str, ...]:
    """Parameters that the initial state is drawn from, which the core never sees."""
    if spec.kind == "slot_attention":
        return ("slots_mu", "slots_logsigma")
    if spec.kind == "slot_mixture":
        return ("mean_mu", "mean_logsigma", "logstd_mu", "logstd_logsigma")
    return ()


def initial_parameters(spec: Spec, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw initial values of all parameters (PyTorch's defaults, then `weight_init`).

    "em" makes the untrained module EM for a Gaussian mixture: queries and keys are the means and
    features themselves, the GRU nearly copies the weighted mean, the residual MLP is nearly zero.
    """
    values: dict[str, np.ndarray] = {}
    shapes = parameter_shapes(spec)
    for name, shape in shapes.items():
        if name.startswith("norm_"):
            value = np.full(shape, 1.0 if name.endswith("weight") else 0.0)
        elif name in ("slots_mu", "slots_logsigma", "mean_mu"):
            # Glorot's bound for a (1, D) array, as the original Slot Attention draws them
            value = rng.uniform(-1, 1, shape) * math.sqrt(6 / (1 + spec.dim))
        elif name in ("mean_logsigma", "logstd_mu"):
            value = np.zeros(shape)
        elif name == "logstd_logsigma":
            value = np.full(shape, -2.0)
        else:
            fan_in = spec.dim if name.startswith("gru") else _fan_in(name, shapes)
            value = rng.uniform(-1, 1, shape) / math.sqrt(fan_in)
        values[name] = value
    if spec.kind == "slot_mixture" and spec.weight_init == "em":
        _em_weights(spec, values)
    return {name: np.ascontiguousarray(v, dtype=spec.dtype) for name, v in values.items()}


def _fan_in(name, shapes):
    return shapes[name.rsplit(".", 1)[0] + ".weight"][1]


def _em_weights(spec, values):
    d = spec.dim
    for name in ("to_q.weight", "to_k.weight"):
        values[name] = np.eye(*values[name].shape)
    for name in ("gru.weight_ih", "gru.weight_hh"):
        values[name] *= 0.1
    values["gru.weight_ih"][2 * d :] = np.eye(d)
    values["gru.weight_hh"][2 * d :] = 0
    for name in ("gru.bias_ih", "gru.bias_hh"):
        values[name][:] = 0
    # the update gate z is sigmoid(-2) = 0.12: seven eighths of the new mean are the candidate's
    values["gru.bias_ih"][d : 2 * d] = -2
    values["mlp.2.weight"] *= 0.1
    values["mlp.2.bias"] *= 0.1
