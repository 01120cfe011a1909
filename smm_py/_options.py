"""The table of options: each is written once, with its type, default, check and documentation.

Constructors and their signatures, `repr`, docstrings, the PyTorch twins, files, the core's
configuration and `Spec` follow from it. A new option needs a row here, a row in smm.h, the C code
that uses it, the PyTorch form (`torch/lean.py`) and a case in tests/cases.py.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    cast,
    dataclass_transform,
    get_args,
)

import numpy as np

from . import _core

if TYPE_CHECKING:
    from ._spec import Spec

DType = Literal["float32", "float64"]
Activation = Literal["relu", "gelu"]
EpsIn = Literal["weights", "total"]
Gradient = Literal["full", "implicit", "straight-through", "bilevel"]
HeadAttention = Literal["mean", "sum"]
Precision = Literal["float32", "bfloat16"]
Prior = Literal["learned", "uniform"]
SlotMLP = Literal["always", "not-last", "never"]
Start = Literal["gaussian", "inputs"]
Update = Literal["mean", "scaled-mean", "constant", "sum"]
Variant = Literal["stable", "paper", "reference", "fair"]
WeightInit = Literal["em", "default"]

MOST_OF = {"num_slots": 2**20, "num_iters": 2**20 - 1}  # others: the core's most of a width


def count(name: str, value: object) -> int:
    """The number, if it is an integer from 1 to the most that the core takes; else an error."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {value!r} ({type(value).__name__})")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    most = MOST_OF.get(name, _core.WIDTH_MOST)
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")
    return int(value)


def flag(name: str, value: object) -> bool:
    """The bool, or an error."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def positive(name: str, value: object, zero: bool = False) -> float:
    """The number, if it is finite and above zero (or zero, where it may be); else an error."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(
        value, (int, float, np.integer, np.floating)
    ):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    plain = value.item() if isinstance(value, np.generic) else value
    if not (0 < plain or zero and plain == 0) or not plain <= sys.float_info.max:
        raise ValueError(
            f"{name} must be finite and {'at least' if zero else 'greater than'} 0, got {value!r}"
        )
    return float(plain)


def not_negative(name: str, value: object) -> float:
    return positive(name, value, zero=True)


def near(name: str, names: Iterable[str]) -> str:
    """What may have been meant by an unknown name."""
    import difflib

    names = list(names)
    close = difflib.get_close_matches(name, names, 3)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"


@dataclass(frozen=True)
class Check:
    """A type as docstrings name it, and the function that returns a value of it or raises."""

    type: str
    function: Callable[[str, object], Any]
    precise: bool = False  # a number that must be normal and finite in the module's dtype, or 0


def one_of(literal: Any) -> Check:
    """Check for one of the strings of a Literal."""
    choices = ", ".join(map(repr, get_args(literal)))

    def check(name: str, value: object) -> object:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be one of {choices}, got {value!r}")
        if value not in get_args(literal):
            raise ValueError(f"{name} must be one of {choices}, got {value!r}")
        return value

    return Check(f"{{{choices}}}", check)


def _position(literal: Any) -> Callable[[Any], float]:
    """What gives one of the strings of a Literal its number in the core."""
    return lambda value: get_args(literal).index(value)


COUNT, FLAG = Check("int", count), Check("bool", flag)
POSITIVE = Check("float", positive, precise=True)
FLOOR = Check("float", not_negative, precise=True)


@dataclass(frozen=True)
class Row:
    """One option of one kind; what a class leaves unset comes from its base."""

    unset: ClassVar[Any] = object()

    default: Any = unset
    check: Check = unset
    doc: str = unset
    kw_only: bool = True
    core: str | None = None  # its name in the core, where that is another
    number: Callable[[Any], float] = float  # its value there
    name: str = ""

    def __set_name__(self, owner: object, name: str) -> None:
        object.__setattr__(self, "name", name)

    def __get__(self, module: Any, owner: object = None) -> Any:
        return self if module is None else module._option(self.name)

    def over(self, base: Row | None) -> Row:
        """This row, completed by the one that it changes."""
        if base is None:
            return self
        own = {f: getattr(self, f) for f in ("default", "check", "doc")}
        return replace(base, **{f: value for f, value in own.items() if value is not Row.unset})

    def described(self) -> str:
        """The entry of a numpydoc section."""
        default = "optional" if self.default is None else f"default {self.default!r}"
        return f"{self.name} : {self.check.type}, {default}\n{textwrap.indent(self.doc, '    ')}"


T = TypeVar("T")


def option(
    check: Check = Row.unset,
    doc: str = Row.unset,
    *,
    default: T = Row.unset,
    kw_only: bool = True,
    core: str | None = None,
    number: Callable[[Any], float] = float,
) -> T:
    """A row of the table; in a derived class, the changes of one."""
    return cast(T, Row(default, check, doc, kw_only, core, number))


@dataclass_transform(kw_only_default=True, field_specifiers=(option,))
class Table:
    """A class whose attributes made by `option` are its constructor's arguments, and read-only."""

    _rows: ClassVar[dict[str, Row]] = {}
    _spec: Spec

    def __init_subclass__(cls) -> None:
        rows: dict[str, Row] = {}
        for base in reversed(cls.__mro__):
            for name, row in vars(base).items():
                if isinstance(row, Row):
                    rows[name] = row.over(rows.get(name))
        cls._rows = rows
        if not getattr(cls.__init__, "from_table", False):
            return  # written by hand, with its own signature and documentation
        parameters = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY
                if row.kw_only
                else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=row.default,
            )
            for name, row in sorted(rows.items(), key=lambda item: item[1].kw_only)
        ]
        cls.__init__ = _constructor(parameters)  # type: ignore[method-assign]
        if cls.__doc__:
            text = inspect.cleandoc(cls.__doc__)
            entries = "\n".join(rows[p.name].described() for p in parameters)
            head, *tail = re.split(r"\n\n(?=[A-Z]\w+\n---)", text, maxsplit=1)
            section = f"Parameters\n----------\n{entries}"
            cls.__doc__ = "\n\n".join([head, section, *tail]) + "\n"

    def _build(self, **arguments: Any) -> None:
        """Set up from the constructor's arguments, all of them."""
        raise NotImplementedError

    def _option(self, name: str) -> Any:
        return getattr(self._spec, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in self._rows:
            raise AttributeError(f"{name} is fixed when a module is made, make another one")
        super().__setattr__(name, value)

    @property
    def options(self) -> dict[str, Any]:
        """The options that make a module like this one, by name."""
        return {name: getattr(self._spec, name) for name in self._rows if name != "seed"}

    def _summary(self) -> str:
        """Its sizes, and the options that differ from what would be taken if they were left out."""
        shown = ("dim", "num_slots", "num_iters")
        return ", ".join(
            f"{name}={value!r}"
            for name, value in self.options.items()
            if name in shown or value != self._spec.left_out(name, self._rows[name].default)
        )


def _constructor(parameters: list[inspect.Parameter]) -> Any:
    signature = inspect.Signature(parameters)

    def __init__(self: Table, /, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in signature.parameters:
                hint = near(name, signature.parameters)
                raise TypeError(f"{type(self).__name__} has no option {name!r}; {hint}")
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        bound.apply_defaults()
        self._build(**bound.arguments)

    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    __init__.__signature__ = inspect.Signature([self, *parameters])  # type: ignore[attr-defined]
    __init__.from_table = True  # type: ignore[attr-defined]
    return __init__


Table.__init__ = _constructor([])  # type: ignore[method-assign]


class Options(Table):
    """Options of every kind."""

    dim: int = option(COUNT, "D, width of a slot's mean.", default=64, kw_only=False)
    num_slots: int = option(
        COUNT,
        "K, number of slots; a call may use another.",
        default=7,
        kw_only=False,
        core="update_slots",
    )
    num_iters: int = option(
        COUNT, "T, number of steps; a call may use another.", default=3, kw_only=False
    )
    start: Start | None = option(
        one_of(Start),
        "Where slots start: drawn from a learned Gaussian, or at distinct random inputs.",
        default="gaussian",
    )
    gradient: Gradient = option(
        one_of(Gradient),
        'Through all steps ("full"), or the last alone. The initial state then gets zeros\n'
        '("implicit"), the gradient of the final state ("straight-through") or that of the state\n'
        'before the last step ("bilevel": Jia et al. 2023).',
        default="implicit",
        number=lambda value: _core.GRADIENTS[value],
    )
    eps: float = option(
        POSITIVE,
        "Added to the responsibilities before they are normalised over inputs.",
        default=1e-8,
    )
    tol: float = option(
        Check("float", not_negative),
        "An image takes its last step after one in which none of its slots moved further than\n"
        "this (root mean square over channels of the mean); 0: all steps are taken.",
        default=0.0,
    )
    recompute: bool = option(
        FLAG,
        "Keys and values are recomputed in every step: the memory of a call does not grow\n"
        "with N. A SlotMixture then takes 2 to 4 times as long; other kinds, to which it costs\n"
        "little, do so for large images in any case.",
        default=False,
    )
    bfloat16_inputs: bool = option(
        FLAG,
        "x is bfloat16 (of ml_dtypes or from `smm_py.to_bfloat16`), in half the memory. It is\n"
        "widened where it is read; everything else is of the module's dtype.",
        default=False,
    )
    if not TYPE_CHECKING:  # where each class that can be made says which types it takes
        dtype = option(one_of(DType), "Of inputs, parameters and outputs.", default="float32")


class ScaledOptions(Options):
    """Of the kinds that scale logits or distances."""

    scale: float | None = option(
        POSITIVE, "Factor of the squared distances; dim^-1/2 if not given.", default=None
    )


class NetworkOptions(ScaledOptions):
    """Of the kinds with learned weights."""

    hidden_dim: int = option(COUNT, "H, hidden width of the MLPs.", default=128, kw_only=False)
    input_dim: int | None = option(
        COUNT, "I, width of an input; `dim` if not given.", default=None, kw_only=False
    )
    qkv_bias: bool = option(
        FLAG, "The maps to queries, keys and values have biases.", default=False
    )
    precision: Precision | None = option(
        one_of(Precision),
        "Factors of the products of linear maps and of their gradients, but for a mixture's\n"
        "queries and the output; sums, and all else, are float32. None: float32, and bfloat16\n"
        "under PyTorch's autocast to it.",
        default=None,
        core="bfloat16",
        number=lambda value: value == "bfloat16",
    )
    norm_eps: float = option(POSITIVE, "Added to the variance in every LayerNorm.", default=1e-5)
    gru: bool = option(
        FLAG,
        "Slots are updated by a GRU. Without it the weighted mean is added to the hidden state.",
        default=True,
    )
    norm_hidden: bool = option(
        FLAG,
        "The hidden state is LayerNorm(slots), not the slots; in mixtures the mean of\n"
        "LayerNorm([mean, log_std]), which needs slot_norm.",
        default=False,
    )
    slot_mlp: SlotMLP = option(
        one_of(SlotMLP),
        'In which steps slots have their residual MLP. With "not-last", a gradient through the\n'
        "last step alone does not reach it.",
        default="always",
        number=_position(SlotMLP),
    )
    activation: Activation = option(
        one_of(Activation),
        "Of the slots' residual MLP; GELU is the exact one.",
        default="relu",
        core="gelu",
        number=lambda value: value == "gelu",
    )
    update_masked: bool = option(
        FLAG,
        "Masked slots, to which no input is assigned, are updated like others: with the mean of\n"
        'all inputs, or with 0 where eps_in="total" or the update is no mean. Without it they\n'
        "keep their state.",
        default=False,
    )


class MixtureOptions(Options):
    """Of the kinds whose slots have a variance."""

    num_slots: int = option(default=10, kw_only=False)
    prior: Prior | None = option(
        one_of(Prior),
        "Prior of the slots: their mean responsibility, or 1/K.",
        default="learned",
        core="uniform_prior",
        number=lambda value: value == "uniform",
    )
    temperature: float | None = option(
        POSITIVE,
        "Factor of the log density in the responsibilities; dim^-1/2 is a useful setting.",
        default=1.0,
    )
    var_floor: float | None = option(
        FLOOR,
        "Added to every variance. The reference variant adds eps instead.",
        default=1e-4,
        number=lambda value: value or 0.0,  # None: floors of each image, see clustering.floors
    )


class ClusteringOptions(Options):
    """Of the kinds without learned weights."""

    num_iters: int = option(default=10, kw_only=False)
    start: Start | None = option(
        doc="Where slots start: at standard normal numbers, or at distinct random inputs.",
        default="inputs",
    )
    gradient: Gradient = option(default="full")
    eps: float = option(
        check=FLOOR,
        doc="Added to the responsibilities before they are normalised over inputs. With 0 a slot\n"
        "that no input is assigned to keeps its state.",
        default=0.0,
    )
    if not TYPE_CHECKING:
        dtype = option(
            doc="Of inputs and outputs. None: float32 data stay float32; other real numbers, and\n"
            "lists of them, are taken as float64.",
            default=None,
        )


class SlotAttentionOptions(NetworkOptions):
    _kind = "slot_attention"

    scale: float | None = option(
        doc="Factor of the logits; (qkv_dim / heads)^-1/2 if not given.", default=None
    )
    heads: int = option(
        COUNT,
        "A divisor of `qkv_dim`; each head has a softmax over slots of its own, and their\n"
        "outputs are concatenated.",
        default=1,
    )
    qkv_dim: int | None = option(
        COUNT,
        "P, width of queries, keys and values, all heads together; `dim` if not given.",
        default=None,
    )
    combine_heads: bool = option(
        FLAG, "A linear map from the heads' outputs, width P, to width D.", default=False
    )
    joint_softmax: bool = option(
        FLAG, "One softmax over all slots of all heads, not one for each head.", default=False
    )
    head_attention: HeadAttention = option(
        one_of(HeadAttention),
        "The attention returned: mean or sum over heads.",
        default="mean",
        core="attention_sum",
        number=lambda value: value == "sum",
    )
    update: Update = option(
        one_of(Update),
        "What the attention-weighted sum over inputs is divided by (Krimmel et al. 2024): the\n"
        'slot\'s weight ("mean"), the same, times num_slots / K ("scaled-mean"; K is that of the\n'
        'call), the number of inputs ("constant"), or nothing ("sum"). eps has a part in the\n'
        "means alone.",
        default="mean",
        number=_position(Update),
    )
    eps_in: EpsIn = option(
        one_of(EpsIn),
        'Where eps stands: (a + eps) / sum(a + eps) ("weights"), or a / (sum(a) + eps) ("total"),\n'
        "where the update of a slot without any weight is 0.",
        default="weights",
        core="eps_in_total",
        number=lambda value: value == "total",
    )


class SlotMixtureOptions(NetworkOptions, MixtureOptions):
    _kind = "slot_mixture"

    num_iters: int = option(default=5, kw_only=False)
    scale: float | None = option(
        doc='Factor of the distances of the variants "reference" (dim^-1/2 if not given) and\n'
        '"fair" (1).',
        default=None,
    )
    variant: Variant = option(
        one_of(Variant),
        'A set of defaults, over which options given by hand win. "stable": norm_kv=True,\n'
        'prior="uniform", temperature=dim^-1/2, start="inputs", which learns. "paper",\n'
        'Algorithm 1 as printed: norm_kv=False, prior="learned", temperature=1,\n'
        'start="gaussian". "reference": the code that the authors released; "fair": its\n'
        "other class, in which values are the keys, slots have a learned prior, and scale is 1.\n"
        "slot_norm, norm_kv, prior and temperature do not apply to these two. The gradient of\n"
        '"fair" passes through the prior of every step with gradient="implicit" too.',
        default="stable",
        core="fair",
        number=lambda value: value == "fair",
    )
    start: Start | None = option(
        doc="Where means start: drawn from a learned Gaussian, or at distinct random inputs; if\n"
        "not given, as `variant` says.",
        default=None,
    )
    prior: Prior | None = option(
        doc="Prior of the slots: their mean responsibility, or 1/K; if not given, as `variant`\n"
        "says.",
        default=None,
    )
    temperature: float | None = option(
        doc="Factor of the log density in the responsibilities; if not given, as `variant` says.",
        default=None,
    )
    slot_norm: bool = option(
        FLAG,
        "Query and log standard deviation are computed from LayerNorm([mean, log_std]).",
        default=False,
    )
    norm_kv: bool | None = option(
        FLAG,
        "Keys and values are computed from LayerNorm(h); if not given, as `variant` says.",
        default=None,
    )
    input_mlp: bool = option(FLAG, "h = MLP(LayerNorm(x)); without it h = x.", default=True)
    reduce: bool = option(
        FLAG,
        "Slots are a linear map of [mean, variance] to width D; without it they are\n"
        "[mean, variance], (B, K, 2D).",
        default=True,
    )
    weight_init: WeightInit = option(
        one_of(WeightInit),
        'Initial weights: "em" makes the untrained module EM for a Gaussian mixture,\n'
        '"default" draws them as PyTorch does.',
        default="em",
    )


class KMeansOptions(ClusteringOptions, ScaledOptions):
    _kind = "kmeans"

    scale: float | None = option(
        doc="Factor of the squared distances; dim^-1/2 if not given. A large one gives Lloyd's\n"
        "algorithm.",
        default=None,
    )


class GaussianMixtureOptions(ClusteringOptions, MixtureOptions):
    _kind = "gaussian_mixture"

    var_floor: float | None = option(
        doc="Added to every variance. None: 1e-12 of the variance of each image's channel, so\n"
        "that the clusters found do not depend on the unit of the data.",
        default=None,
    )


# what a variant gives the options that are left to it; the temperature None is dim^-1/2
VARIANTS: dict[str, dict[str, Any]] = {
    "stable": dict(norm_kv=True, prior="uniform", temperature=None, start="inputs"),
    "paper": dict(norm_kv=False, prior="learned", temperature=1.0, start="gaussian"),
    "reference": dict(norm_kv=False, prior="learned", temperature=1.0, start="gaussian"),
    "fair": dict(norm_kv=False, prior="learned", temperature=1.0, start="gaussian"),
}


def checked(rows: Mapping[str, Row], options: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a table: as given, checked, else its default. None stays where it is one."""
    values = {name: options.get(name, row.default) for name, row in rows.items()}
    for name, row in rows.items():
        if values[name] is not None or row.default is not None:
            values[name] = row.check.function(name, values[name])
    return values
