"""What a module is: its options, checked once, its parameters' shapes and their initial values.

The NumPy modules and the PyTorch twins are built from the same `Spec`, so that their options, their
parameter names and their errors are the same.
"""

# pyright: reportIncompatibleVariableOverride=false
from __future__ import annotations

import functools
import math
from typing import Any, cast

import numpy as np

from . import _core
from ._options import (
    FLOOR,
    POSITIVE,
    VARIANTS,
    DType,
    GaussianMixtureOptions,
    KMeansOptions,
    Prior,
    SlotAttentionOptions,
    SlotMixtureOptions,
    Start,
    checked,
    option,
)


class Spec(SlotAttentionOptions, SlotMixtureOptions, KMeansOptions, GaussianMixtureOptions):
    """All options of a module of any kind, checked and resolved; immutable and hashable.

    Those that the kind lacks have a default. `kind` is one of `KINDS`.
    """

    kind: str
    drawn_from: dict[
        str, tuple[str, str]
    ]  # array of the initial state -> its Gaussian's parameters
    drawn_names: tuple[str, ...]
    dtype: DType = option(default=cast(DType, None))  # None: of each input, see `of`
    input_dim: int = option(default=cast(int, None), kw_only=False)  # resolved, no longer None
    qkv_dim: int = option(default=cast(int, None))
    scale: float = option(default=cast(float, None))
    start: Start = option(default=cast(Start, None))
    norm_kv: bool = option(default=cast(bool, None))
    prior: Prior = option(default=cast(Prior, None))
    temperature: float = option(default=cast(float, None))
    eps: float = option(check=FLOOR, default=1e-8)

    def __init__(self, kind: str, **options: Any) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        values = vars(self)
        values.update(kind=kind, **checked(self._rows, options))
        if self.has_network:
            POSITIVE.function("eps", self.eps)
        for name, value in VARIANTS[self.variant].items():
            if values[name] is None:
                values[name] = self.dim**-0.5 if value is None else value
        if self.input_dim is None:
            values["input_dim"] = self.dim
        if self.qkv_dim is None:
            values["qkv_dim"] = self.dim
        if self.scale is None:
            values["scale"] = 1.0 if self.variant == "fair" else (self.qkv_dim / self.heads) ** -0.5
        self._check_numbers()
        self._check_network()
        values["_hash"] = hash(tuple(self.options.values()))
        prefixes = {"slots": "slots", "mean": "mean", "log_std": "logstd"}
        names = self.state_names if self.has_network else ()
        drawn = {n: (f"{prefixes[n]}_mu", f"{prefixes[n]}_logsigma") for n in names}
        values.update(drawn_from=drawn, drawn_names=tuple(sum(drawn.values(), ())))
        if self.input_dim == self.dim:
            return
        if not self.has_network:
            raise ValueError(f"input_dim must equal dim={self.dim} here, got {self.input_dim}")
        if self.is_mixture and not self.is_reference and not self.input_mlp:
            raise ValueError(
                "input_dim must equal dim where input_mlp=False (the inputs are the "
                f"values): expected {self.dim}, got {self.input_dim}"
            )

    def _check_network(self) -> None:
        """What one option asks of another."""
        width = "dim" if self.qkv_dim == self.dim else "qkv_dim"
        if self.qkv_dim % self.heads:
            raise ValueError(f"heads must divide {width}={self.qkv_dim}, got {self.heads}")
        if not self.gru and self.qkv_dim != self.dim and not self.combine_heads:
            raise ValueError(
                f"qkv_dim must equal dim={self.dim} where gru=False and combine_heads=False, "
                f"got {self.qkv_dim}"
            )
        if self.start == "inputs" and self.qkv_dim != self.dim:
            raise ValueError(
                f'start must be "gaussian" where qkv_dim={self.qkv_dim} differs from '
                f"dim={self.dim}, got 'inputs'"
            )
        if self.eps_in == "total" and self.update in ("constant", "sum"):
            raise ValueError(
                f'eps_in must be "weights" where update={self.update!r}, which has no eps, '
                "got 'total'"
            )
        if self.activation != "relu" and self.slot_mlp == "never":
            raise ValueError(
                f'activation must be "relu" where slot_mlp="never", got {self.activation!r}'
            )
        if self.norm_hidden and self.kind == "slot_mixture" and not self.slot_norm:
            raise ValueError("norm_hidden must be False where slot_norm=False, got True")
        if self.update_masked and self.is_reference:
            raise ValueError(
                f"update_masked must be False where variant={self.variant!r}, whose weights "
                "have no eps, got True"
            )
        if self.precision == "bfloat16" and self.dtype == "float64":
            raise ValueError('precision must be "float32" where dtype="float64", got "bfloat16"')
        if self.variant == "fair" and self.gradient not in ("full", "implicit"):
            raise ValueError(
                f'gradient must be "full" or "implicit" where variant="fair", got {self.gradient!r}'
            )

    def _check_numbers(self) -> None:
        least, most = limits(self.dtype or "float64")
        for name, value in self._precise():
            if value < least:
                raise ValueError(
                    f"{name} must be at least {least:.2g} in {self.dtype}, got {value!r}"
                )
            if value > most:
                raise ValueError(f"{name} must be a finite {self.dtype}, got {value!r}")

    def _precise(self) -> list[tuple[str, float]]:
        """The numbers other than 0 that the module's precision must hold."""
        names = [name for name, row in self._rows.items() if row.check.precise]
        return [(name, getattr(self, name)) for name in names if getattr(self, name)]

    @property
    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("kind", *self._rows)}

    @functools.cached_property
    def config(self) -> _core.Config:
        """The core's form of it."""
        options = {
            row.core or name: row.number(getattr(self, name))
            for name, row in self._rows.items()
            if (row.core or name) in _core.OPTIONS
        }
        kind = "slot_mixture_reference" if self.is_reference else self.kind
        return _core.Config(
            _core.KINDS[kind], options, self.dtype == "float64", self.bfloat16_inputs
        )

    def left_out(self, name: str, default: object) -> object:
        """What an option would be if it were not given among the others."""
        if default is not None:
            return default
        try:
            return getattr(self.but(**{name: None}), name)
        except ValueError:  # the others ask for one
            return None

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
        """True for the code released by the paper's authors, either class."""
        return self.kind == "slot_mixture" and self.variant in ("reference", "fair")

    @property
    def is_fair(self) -> bool:
        """True for the one of these classes whose prior is learned."""
        return self.is_reference and self.variant == "fair"

    @property
    def reaches_state(self) -> bool:
        """Whether any gradient reaches the initial state."""
        return self.gradient != "implicit" or self.is_fair

    @property
    def slot_dim(self) -> int:
        """Last dimension of the module's output."""
        reduced = not self.is_mixture or (self.has_network and self.reduce)
        return self.dim if reduced else 2 * self.dim

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("mean", "log_std") if self.is_mixture else ("slots",)

    @property
    def state_forms(self) -> tuple[tuple[str, ...], ...]:
        """Names of arrays that make a state; rows of values may be means if they have the width."""
        names = self.state_names
        return (names, ("indices", *names[1:]))[: 1 + (self.qkv_dim == self.dim)]

    @property
    def state(self) -> tuple[str, ...]:
        """All arrays of a state; `init` need not have the prior."""
        return (*self.state_names, "prior") if self.is_mixture else self.state_names

    def suits(self, dtype: DType) -> bool:
        """Whether its options are numbers of that precision too."""
        least, most = limits(dtype)
        if dtype == "float64" and self.precision == "bfloat16":
            return False
        return all(least <= value <= most for _, value in self._precise())

    @functools.lru_cache(maxsize=256)  # noqa: B019 (a Spec is small)
    def of(self, dtype: DType) -> Spec:
        """The Spec of a call: this, but where its dtype is that of the inputs."""
        return self if self.dtype else self.but(dtype=dtype)

    def but(self, **changes: Any) -> Spec:
        """A copy with other options (checked again)."""
        return Spec(**{**self.options, **changes})

    def __eq__(self, other: object) -> bool:
        return self is other or isinstance(other, Spec) and self.options == other.options

    def __hash__(self) -> int:
        return cast(int, vars(self)["_hash"])

    def __reduce__(self) -> Any:  # hashes of strings differ between processes
        return functools.partial(Spec, **self.options), ()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} of a Spec is fixed")


KINDS = tuple(k for k in _core.KINDS if k != "slot_mixture_reference")


def limits(dtype: DType) -> tuple[float, float]:
    """The least and the greatest number of full precision."""
    of = np.finfo(dtype)
    return float(of.tiny), float(of.max)


def parameter_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every learned array: the core's, in its order, and the initial state's."""
    return {**spec.config.parameters(), **dict.fromkeys(initial_state_names(spec), (spec.dim,))}


def initial_state_names(spec: Spec) -> tuple[str, ...]:
    """Parameters that the initial state is drawn from, which the core never sees."""
    return spec.drawn_names


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


def _fan_in(name: str, shapes: dict[str, tuple[int, ...]]) -> int:
    return shapes[name.rsplit(".", 1)[0] + ".weight"][1]


def _em_weights(spec: Spec, values: dict[str, np.ndarray]) -> None:
    d = spec.dim
    for name in ("to_q.weight", "to_k.weight"):
        values[name] = np.eye(*values[name].shape)
    if spec.gru:
        for name in ("gru.weight_ih", "gru.weight_hh"):
            values[name] *= 0.1
        values["gru.weight_ih"][2 * d :] = np.eye(d)
        values["gru.weight_hh"][2 * d :] = 0
        for name in ("gru.bias_ih", "gru.bias_hh"):
            values[name][:] = 0
        # the update gate z is sigmoid(-2) = 0.12: seven eighths of the new mean are the candidate's
        values["gru.bias_ih"][d : 2 * d] = -2
    if spec.slot_mlp != "never":
        values["mlp.2.weight"] *= 0.1
        values["mlp.2.bias"] *= 0.1
