"""State dicts of other implementations: which of their entries is which parameter of ours.

Each implementation is a row of `PEERS`: its names where they are not ours, and the options with
which a module of ours computes what it does. Sizes follow from the shapes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .._options import count, near, not_negative
from . import _modules

# in place of an eps of 0: the least that both precisions have, below the rounding of any weight
LEAST = float(np.finfo("float32").tiny)


class Form(NamedTuple):
    """How an entry is made of parameters, and these of it."""

    there: Callable[..., Tensor]
    here: Callable[[Tensor], tuple[Tensor, ...]]


def _swapped(rows: Tensor) -> Tensor:
    """Gates r, z, n of PyTorch's GRU as z, r, n of Keras', and back."""
    r, z, n = rows.chunk(3)
    return torch.cat([z, r, n])


PLAIN = Form(lambda a: a, lambda t: (t,))
INITIAL = Form(lambda a: a[None, None], lambda t: (t[0, 0],))
INITIAL_PAIR = Form(lambda a, b: torch.cat([a, b])[None, None], lambda t: t[0, 0].chunk(2))
STANDARD_DEVIATION = Form(lambda a: a.exp()[None, None], lambda t: (t[0, 0].log(),))
KERNEL = Form(lambda a: _swapped(a).T, lambda t: (_swapped(t.T),))
BIASES = Form(
    lambda a, b: torch.stack([_swapped(a), _swapped(b)]), lambda t: (_swapped(t[0]), _swapped(t[1]))
)
Entries = dict[str, tuple[tuple[str, ...], Form]]

WEIGHT_BIAS = ("weight", "bias")
LEAVES = {
    **dict.fromkeys(("norm_input", "norm_kv", "norm_slots", "norm_mlp"), WEIGHT_BIAS),
    **dict.fromkeys(("to_q", "to_k", "to_v", "combine_heads"), WEIGHT_BIAS),
    **dict.fromkeys(("mlp.0", "mlp.2", "to_out.0", "to_out.2"), WEIGHT_BIAS),
    "gru": ("weight_ih", "weight_hh", "bias_ih", "bias_hh"),
}
KERAS: Entries = {
    "gru.kernel": (("gru.weight_ih",), KERNEL),
    "gru.recurrent_kernel": (("gru.weight_hh",), KERNEL),
    "gru.bias": (("gru.bias_ih", "gru.bias_hh"), BIASES),
}
# what a state dict may lack: the option that says so, and its values with and without it
OPTIONAL: dict[str, tuple[str, Any, Any]] = {
    "biases": ("qkv_bias", True, False),
    "gru": ("gru", True, False),
    "mlp": ("slot_mlp", "always", "never"),
}
GROUPS = {
    **dict.fromkeys(("to_q.bias", "to_k.bias", "to_v.bias"), "biases"),
    **{f"gru.{leaf}": "gru" for leaf in LEAVES["gru"]},
    **{f"{name}.{leaf}": "mlp" for name in ("norm_mlp", "mlp.0", "mlp.2") for leaf in WEIGHT_BIAS},
}
# parameters that have a size, and on which axis: each is what most of them say
SIZES = {
    "dim": (
        *(("to_q.weight", -1), ("norm_mlp.weight", 0), ("norm_mlp.bias", 0), ("mlp.2.bias", 0)),
        *(("norm_slots.weight", 0), ("norm_slots.bias", 0)),
    ),
    "input_dim": (
        *(("to_k.weight", -1), ("norm_input.weight", 0), ("norm_input.bias", 0)),
        *(("norm_kv.weight", 0), ("norm_kv.bias", 0)),
    ),
    "qkv_dim": (("to_q.weight", 0), ("to_k.weight", 0), ("to_v.weight", 0)),
    "hidden_dim": (("mlp.0.weight", 0), ("mlp.0.bias", 0), ("mlp.2.weight", -1)),
}
GRADIENTS = {"none": "full", "fixed-point": "implicit", "bi-level": "bilevel"}
UPDATES = {"mean": "mean", "scaled_mean": "scaled-mean", "constant": "constant", "none": "sum"}


@dataclass(frozen=True)
class Peer:
    """An implementation.

    Attributes
    ----------
    names : dict
        Name of a submodule of ours -> theirs, where it is another.
    options : dict
        Of our module.
    takes : dict
        Option of theirs -> its default; `_translated` says what each means.
    initial : tuple
        Entries of what initial slots are drawn from, and their forms, where there are any.
    optional : tuple
        Keys of OPTIONAL: what a state dict may lack.
    unused : tuple
        Weights without a part in any result, of the shape of to_k's.
    sizes : tuple
        Those that may differ from dim.
    apart : tuple
        Beginnings of names of other modules that theirs holds too; they are left out.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    takes: Mapping[str, Any] = field(default_factory=dict)
    initial: tuple[tuple[str, tuple[str, ...], Form], ...] = ()
    optional: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ("input_dim",)
    apart: tuple[str, ...] = ()
    keras: bool = False

    @property
    def kind(self) -> type[_modules.SlotAttention | _modules.SlotMixture]:
        return _modules.SlotMixture if "variant" in self.options else _modules.SlotAttention

    def entries(self) -> Entries:
        """Name of an entry -> parameters of ours that it is made of, and how."""
        mixture = self.kind is _modules.SlotMixture
        none = {"combine_heads"} if not self.options.get("combine_heads") else set()
        none |= {"norm_input", "to_v"} if mixture else {"norm_kv", "to_out.0", "to_out.2"}
        biased = self.options.get("qkv_bias") or "biases" in self.optional
        found: Entries = {name: (own, form) for name, own, form in self.initial}
        for module, leaves in LEAVES.items():
            if module in none or (self.keras and module == "gru"):
                continue
            theirs = self.names.get(module, module)
            for leaf in leaves:
                own = f"{module}.{leaf}"
                if biased or GROUPS.get(own) != "biases":
                    found[f"{theirs}.{leaf}"] = (own,), PLAIN
        return {**found, **(KERAS if self.keras else {})}


def _drawn(mu: str, logsigma: str) -> tuple[tuple[str, tuple[str, ...], Form], ...]:
    return (mu, ("slots_mu",), INITIAL), (logsigma, ("slots_logsigma",), INITIAL)


PROJECTED = {"to_q": "project_q", "to_k": "project_k", "to_v": "project_v"}
LUCIDRAINS = Peer(
    names={"norm_mlp": "norm_pre_ff"},
    options={"qkv_bias": True},
    takes={"version": "1.5", "eps": 1e-8},
    initial=_drawn("slots_mu", "slots_logsigma"),
    sizes=(),
)
BO_QSA = Peer(
    names={**PROJECTED, "norm_input": "norm_feature"},
    options={"eps_in": "total"},
    takes={"eps": 1.0, "truncate": "none"},
    sizes=(),
)
GENERA1Z = Peer(
    names={
        "norm_input": "norm1kv",
        "norm_slots": "norm1q",
        "to_q": "proj_q",
        "to_k": "proj_k",
        "to_v": "proj_v",
        "gru": "rnn",
        "norm_mlp": "norm2",
        "mlp.0": "ffn.0",
        "mlp.2": "ffn.2",
    },
    options={"eps_in": "total", "activation": "gelu"},
    takes={"eps": 1e-5, "truncate": "none"},
)
PEERS = {
    "lucidrains": LUCIDRAINS,
    "lucidrains-multihead": Peer(
        names=LUCIDRAINS.names,
        options={**LUCIDRAINS.options, "combine_heads": True},
        takes={**LUCIDRAINS.takes, "heads": 4},
        initial=LUCIDRAINS.initial,
        sizes=("qkv_dim",),
    ),
    "evelinehong": Peer(
        names={"norm_mlp": "norm_pre_ff", "mlp.0": "fc1", "mlp.2": "fc2"},
        options={"qkv_bias": True},
        takes={"eps": 1e-8},
        initial=(
            ("slots_mu", ("slots_mu",), INITIAL),
            ("slots_sigma", ("slots_logsigma",), STANDARD_DEVIATION),
        ),
        sizes=(),
    ),
    "slate": Peer(
        names={**PROJECTED, "norm_input": "norm_inputs"},
        options={"joint_softmax": True, "head_attention": "sum"},
        takes={"eps": 1e-8, "heads": 1},
    ),
    "steve": Peer(
        names={**PROJECTED, "norm_input": "norm_inputs"},
        options={"slot_mlp": "not-last"},
        takes={"eps": 1e-8},
        initial=_drawn("slot_mu", "slot_log_sigma"),
        apart=("predictor.",),
    ),
    "oclf": Peer(
        names={
            "norm_mlp": "ff_mlp.module.0",
            "mlp.0": "ff_mlp.module.1",
            "mlp.2": "ff_mlp.module.3",
        },
        options={"joint_softmax": True, "update_masked": True},
        takes={"eps": 1e-8, "heads": 1, "gradient": "full"},
        optional=("biases", "mlp"),
        sizes=("input_dim", "qkv_dim"),
    ),
    "videosaur": Peer(
        names={
            "norm_input": "norm_features",
            "norm_mlp": "mlp.layers.0",
            "mlp.0": "mlp.layers.1",
            "mlp.2": "mlp.layers.3",
        },
        options={"norm_hidden": True},
        takes={"eps": 1e-8},
        optional=("gru", "mlp"),
        sizes=("input_dim", "qkv_dim"),
    ),
    "spot": Peer(
        names={**PROJECTED, "norm_input": "norm_inputs"},
        options={"joint_softmax": True, "head_attention": "sum"},
        takes={"eps": 1e-8, "heads": 1, "truncate": "bi-level"},
    ),
    "vq-vfm-ocl": GENERA1Z,
    "dias": GENERA1Z,
    "addtt": Peer(
        names={"norm_mlp": "norm_pre_ff"},
        options={"norm_eps": 1e-3},
        takes={"eps": 1e-8},
        initial=_drawn("slots_mu", "slots_log_sigma"),
    ),
    "bo-qsa": BO_QSA,
    "bo-qsa-sa": Peer(names=BO_QSA.names, takes={"eps": 1e-8, "truncate": "none"}, sizes=()),
    "google": Peer(
        names={"norm_input": "norm_inputs", "to_q": "q", "to_k": "k", "to_v": "v"},
        options={"norm_eps": 1e-3},
        takes={"eps": 1e-8},
        keras=True,
    ),
    "update-normalization": Peer(
        names={"norm_mlp": "norm_pre_ff"},
        takes={"eps": 1e-8, "update": "mean"},
        initial=_drawn("slots_mu", "slots_logsigma"),
        sizes=("input_dim", "qkv_dim"),
        keras=True,
    ),
    "airi-fair": Peer(
        names={
            "norm_kv": "norm_input",
            "gru": "gru_mu",
            "norm_mlp": "norm_mu",
            "mlp.0": "mlp_mu.0",
            "mlp.2": "mlp_mu.2",
            "to_out.0": "mlp_out.0",
            "to_out.2": "mlp_out.2",
        },
        options={"variant": "fair", "input_mlp": False, "gradient": "implicit"},
        takes={"eps": 1e-8},
        initial=(
            ("slots_mu", ("mean_mu", "logstd_mu"), INITIAL_PAIR),
            ("slots_logsigma", ("mean_logsigma", "logstd_logsigma"), INITIAL_PAIR),
        ),
        unused=("to_v.weight",),
        sizes=(),
    ),
}
FREE = {  # options that a state dict has no word on, or that its shapes tell
    *("dim", "num_slots", "num_iters", "hidden_dim", "input_dim", "qkv_dim", "dtype", "seed"),
    *("gradient", "start", "recompute", "bfloat16_inputs", "update_masked", "weight_init"),
}
# what an option of theirs decides here, but for the gradient
DECIDES = {"eps": "eps", "heads": "heads", "update": "update", "version": "scale"}


def from_peer(
    peer: str,
    state_dict: Mapping[str, Tensor],
    *,
    num_slots: int,
    num_iters: int = 3,
    **options: Any,
) -> _modules.SlotAttention | _modules.SlotMixture:
    """A module with the weights of another implementation, and its numbers.

    Slots, attention and gradients are those of that implementation's own code, to rounding. Its
    sizes follow from the shapes, its dtype and device from the tensors. Where a state dict holds
    nothing to draw initial slots from, give them in each call, as that implementation does: the
    module's own parameters for it are then untrained.

    Parameters
    ----------
    peer : str
        "lucidrains", "lucidrains-multihead", "evelinehong", "slate", "steve", "oclf", "videosaur",
        "spot", "vq-vfm-ocl", "dias", "addtt", "bo-qsa", "bo-qsa-sa", "google",
        "update-normalization" or "airi-fair".
    state_dict : mapping
        Name -> float32 or float64 tensor: of the slot module, or of a model with one such module.
    num_slots : int
        K, number of slots.
    num_iters : int
        T, number of steps, as that implementation counts them.
    **options
        What that implementation was made with, if it was not its default: "eps"; "heads"
        (lucidrains-multihead, slate, spot, oclf); "version", "1.4" or "1.5" (lucidrains,
        lucidrains-multihead); "truncate", "none", "fixed-point" or "bi-level" (spot, vq-vfm-ocl,
        dias, bo-qsa, bo-qsa-sa); "gradient", "full" or "implicit" (oclf); "update", "mean",
        "scaled_mean", "constant" or "none" (update-normalization).

    Returns
    -------
    SlotAttention or SlotMixture
        `module(x, {"slots": initial}, return_attention=True)` returns the attention as that
        implementation reports it. For airi-fair `init` holds "mean" and "log_std".

    Raises
    ------
    KeyError
        For a parameter that is missing or unknown.
    TypeError, ValueError
        For an unknown implementation or option, or a wrong type, dtype, shape or value.

    Examples
    --------
    >>> from smm_py.torch import SlotAttention, compat
    >>> weights = compat.to_peer("steve", SlotAttention(dim=8, slot_mlp="not-last"))
    >>> sorted(weights)[-2:]
    ['slot_log_sigma', 'slot_mu']
    >>> compat.from_peer("steve", weights, num_slots=4).extra_repr()
    "dim=8, num_slots=4, num_iters=3, gradient='full', slot_mlp='not-last'"
    """
    row = _row(peer)
    for name in options:
        if name not in row.takes:
            raise TypeError(f"{peer} has no option {name!r}; {near(name, row.takes)}")
    steps = count("num_iters", num_iters) + (options.get("gradient") == "implicit")
    entries = row.entries()
    group = {name: GROUPS.get(own[0]) for name, (own, _) in entries.items()}
    needed = [name for name in entries if group[name] not in row.optional]
    given = _part(state_dict, needed)
    given = {n: t for n, t in given.items() if not n.startswith(row.apart)}
    ours: dict[str, Any] = {"gradient": "full", **row.options}
    for key in row.optional:
        option, there, absent = OPTIONAL[key]
        members = [name for name in entries if group[name] == key]
        present = any(name in given for name in members)
        ours[option] = there if present else absent
        needed += members if present else []
    tensors = _checked(peer, given, [*needed, *row.unused])
    ours |= _sizes({own[0]: tensors[n] for n, (own, _) in entries.items() if n in tensors})
    if row.kind is _modules.SlotMixture:
        del ours["qkv_dim"]
    ours |= _translated({**row.takes, **options}, ours["dim"])
    first = next(iter(tensors.values()))
    module = row.kind(num_slots=num_slots, num_iters=steps, dtype=first.dtype, seed=0, **ours)
    module.to(first.device)
    named = module._named()
    with torch.no_grad():
        for name in needed:
            own, form = entries[name]
            _check_shape(name, tensors[name], form.there(*(named[o].to("meta") for o in own)))
        for name in row.unused:
            _check_shape(name, tensors[name], named["to_k.weight"])
        for name in needed:
            own, form = entries[name]
            if form is STANDARD_DEVIATION and not (tensors[name] > 0).all():
                raise ValueError(
                    f"{name} must be above 0, as a module here holds its logarithm, "
                    f"got {float(tensors[name].min())}"
                )
            for parameter, value in zip(own, form.here(tensors[name])):
                named[parameter].copy_(value)
            if form is STANDARD_DEVIATION:
                _keep(module, name, tensors[name])
        for name in row.unused:
            _keep(module, name, tensors[name])
    return module


def to_peer(peer: str, module: nn.Module) -> dict[str, Tensor]:
    """The state dict of another implementation from a module of ours; inverse of `from_peer`.

    What `from_peer` has taken comes back bit for bit. A weight that the implementation holds
    without using it, and that this module was not made from, is zero.

    Parameters
    ----------
    peer : str
        As in `from_peer`.
    module : SlotAttention or SlotMixture
        Trained here or there.

    Returns
    -------
    dict
        Name -> tensor, a copy, under the implementation's names and in its shapes.

    Raises
    ------
    TypeError, ValueError
        If that implementation has no module like this one; the option is named.
    """
    row = _row(peer)
    if not isinstance(module, row.kind):
        raise TypeError(
            f"module must be a smm_py.torch.{row.kind.__name__} for {peer}, "
            f"got {type(module).__name__}"
        )
    _check_options(peer, row, module)
    named, found = module._named(), {}
    with torch.no_grad():
        for name, (own, form) in row.entries().items():
            values = [named[parameter] for parameter in own if parameter in named]
            if not values:  # the options say that it is not there
                continue
            for parameter, value in zip(own, values):
                if parameter in module._spec.drawn_names and value.dim() != 1:
                    raise ValueError(
                        f"{parameter} must be one for all slots for {peer}, "
                        f"got shape {tuple(value.shape)}"
                    )
            kept = _kept(module, name)
            if kept is None or not torch.equal(form.here(kept)[0], values[0]):
                kept = form.there(*values)
            found[name] = kept.clone(memory_format=torch.contiguous_format)
        for name in row.unused:
            kept = _kept(module, name)
            found[name] = torch.zeros_like(named["to_k.weight"]) if kept is None else kept.clone()
    return found


def _row(peer: str) -> Peer:
    if not isinstance(peer, str):
        raise TypeError(f"peer must be a str, got {type(peer).__name__}")
    if peer not in PEERS:
        raise ValueError(f"no implementation {peer!r} is known; {near(peer, PEERS)}")
    return PEERS[peer]


def _part(state_dict: Mapping[str, Tensor], needed: Iterable[str]) -> dict[str, Tensor]:
    """The entries of the slot module, by their names in it."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping, got {type(state_dict).__name__}")
    first, *others = needed
    state_dict = {str(name): value for name, value in state_dict.items()}
    ends = [name.removesuffix(first) for name in state_dict if name.endswith(first)]
    found = [p for p in ends if not p or p.endswith(".")]
    found = [p for p in found if all(p + name in state_dict for name in others)]
    if len(found) > 1:
        raise ValueError(
            f"state_dict must hold one such module, got {len(found)}: {', '.join(map(repr, found))}"
        )
    prefix = found[0] if found else ""
    return {n.removeprefix(prefix): t for n, t in state_dict.items() if n.startswith(prefix)}


def _checked(peer: str, given: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The tensors of those names, of one dtype and on one device."""
    missing = [name for name in names if name not in given]
    if missing:
        raise KeyError(f"state_dict must hold every parameter of {peer}, missing: {missing}")
    for name in given:
        if name not in names:
            raise KeyError(f"{peer} has no parameter {name!r} here; {near(name, names)}")
    tensors: dict[str, Tensor] = {}
    for name in names:
        value = given[name]
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if value.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} must be a float32 or float64 tensor, got {value.dtype}")
        first = tensors.get(names[0], value)
        if (value.dtype, value.device) != (first.dtype, first.device):
            raise TypeError(
                f"{name} must be {first.dtype} on {first.device} as the others are, "
                f"got {value.dtype} on {value.device}"
            )
        tensors[name] = value.detach()
    return tensors


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """What most parameters of a size say, so that an odd one is told from the others."""
    found = {}
    for size, places in SIZES.items():
        told = [(tensors[n].shape or (1,))[axis] for n, axis in places if n in tensors]
        if told:
            found[size] = statistics.mode(told)
    return found


def _check_shape(name: str, value: Tensor, expected: Tensor) -> None:
    if value.shape != expected.shape:
        raise ValueError(
            f"{name} must have shape {tuple(expected.shape)}, got {tuple(value.shape)}"
        )


def _translated(options: Mapping[str, Any], dim: int) -> dict[str, Any]:
    """Options of ours from theirs."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name == "heads":
            found["heads"] = value
        elif name == "eps":
            found["eps"] = not_negative("eps", value) or LEAST
        elif name == "update":
            found["update"] = _choice(name, value, UPDATES)
        elif name == "version":
            found["scale"] = _choice(name, value, {"1.4": dim**-0.5, "1.5": None})
        else:  # "truncate", "gradient"
            table = GRADIENTS if name == "truncate" else {"full": "full", "implicit": "implicit"}
            found["gradient"] = _choice(name, value, table)
    return found


def _choice(name: str, value: object, table: Mapping[str, Any]) -> Any:
    choices = ", ".join(map(repr, table))
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {choices}, got {value!r}")
    if value not in table:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")
    return table[value]


def _keep(module: nn.Module, name: str, value: Tensor) -> None:
    """An entry that no parameter holds to the bit; no state_dict of the module has it."""
    module.register_buffer("_peer_" + name.replace(".", "_"), value.clone(), persistent=False)


def _kept(module: nn.Module, name: str) -> Tensor | None:
    return module._buffers.get("_peer_" + name.replace(".", "_"))


def _check_options(peer: str, row: Peer, module: Any) -> None:
    free = FREE | {DECIDES[name] for name in row.takes if name in DECIDES}
    free |= {OPTIONAL[key][0] for key in row.optional}
    defaults = {**{name: r.default for name, r in row.kind._rows.items()}, **row.options}
    for name, default in defaults.items():
        if name in free:
            continue
        expected, value = module._spec.left_out(name, default), getattr(module._spec, name)
        if value != expected:
            raise ValueError(f"{name} must be {expected!r} for {peer}, got {value!r}")
    spec = module._spec
    for name in ("input_dim", "qkv_dim"):
        value = getattr(spec, name)
        if name not in row.sizes and value != spec.dim:
            raise ValueError(f"{name} must be dim={spec.dim} for {peer}, got {value}")
    if "version" in row.takes:
        scales = (spec.qkv_dim / spec.heads) ** -0.5, spec.dim**-0.5
        if spec.scale not in scales:
            raise ValueError(
                f"scale must be {scales[0]:.6g} or {scales[1]:.6g} for {peer}, got {spec.scale!r}"
            )
