"""The C core as PyTorch operators.

`smm_py::forward` and `smm_py::backward` have kernels for CPU tensors and fake kernels, so that
`torch.compile` and `torch.export` see them; the derivative is an `autograd.Function` around them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _core
from .._spec import Spec
from .lean import DTYPES


class Inputs(NamedTuple):
    """What both operators begin with: arguments of the core, and a Spec as `config_text` has it."""

    x: Tensor
    params: Sequence[Tensor]
    mean: Tensor | None
    log_std: Tensor | None
    prior: Tensor | None
    indices: Tensor | None
    mask: Tensor | None
    slot_mask: Tensor | None
    var_floor: Tensor | None
    config: str
    num_iters: int


class Wanted(NamedTuple):
    """What a call is asked for beyond slots: attention, all other outputs, every step's."""

    attention: bool = False
    every: bool = False
    history: bool = False


# outputs that carry a gradient: the arguments of the operator `backward`
GRADED = ("slots", "mean", "variance", "prior", "log_likelihood", "attention")

_INPUTS = (
    "Tensor x, Tensor[] params, Tensor? mean, Tensor? log_std, Tensor? prior, Tensor? indices, "
    "Tensor? mask, Tensor? slot_mask, Tensor? var_floor, str config, int num_iters"
)
_LIBRARY = torch.library.Library("smm_py", "DEF")
_LIBRARY.define(
    f"forward({_INPUTS}, bool attention, bool every, bool history, bool save) -> Tensor[]"
)
_LIBRARY.define(
    f"backward({_INPUTS}, Tensor saved, {', '.join(f'Tensor? d_{n}' for n in GRADED)}) -> Tensor[]"
)


def result_names(spec: Spec, wanted: Wanted) -> tuple[str, ...]:
    """The results of the operator `forward`, by their names in the core, but for `saved`."""
    names = ["slots"]
    if wanted.attention:
        names += ["attention"]
    if wanted.every and spec.is_mixture:
        names += ["mean", "variance", "prior", "state_log_std"]
        names += ["state_mean", "state_prior"] if spec.is_reference else ["log_likelihood"]
    if wanted.every:
        names += ["iterations"]
    if wanted.history:
        names += ["step_movement"]
        names += ["step_prior"] if spec.is_mixture else []
        names += ["step_log_likelihood"] if spec.is_mixture and not spec.is_reference else []
    return tuple(names)


def config_text(spec: Spec) -> str:
    """A Spec as the operators take it: text, which graphs can hold.

    It also has the rule of what the core saves. Compiled graphs contain such sizes and are cached
    on disk, so that one made with another version of the core must not pass for one of this.
    """
    return json.dumps({**spec.options, "saved": _core.saved_rule(spec.config, 2, 2)})


@functools.lru_cache(maxsize=256)
def _spec(config: str) -> Spec:
    options = json.loads(config)
    del options["saved"]
    return Spec(**options)


def _memory(
    tensor: Tensor | None, dtype: torch.dtype, copies: list[Tensor]
) -> tuple[int, tuple[int, ...]] | None:
    """(address, shape), what the core takes; `copies` holds contiguous ones until it is done."""
    if tensor is None:
        return None
    if tensor.dtype is not dtype:
        raise TypeError(f"expected tensors of {dtype}, got one of {tensor.dtype}")
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
        copies.append(tensor)
    return tensor.data_ptr(), tensor.shape


def _arguments(inputs: Inputs, spec: Spec, copies: list[Tensor]) -> dict[str, Any]:
    """What both calls of the core are given."""
    dtype = DTYPES[spec.dtype]
    return {
        "config": spec.config,
        "x": _memory(inputs.x, torch.bfloat16 if spec.bfloat16_inputs else dtype, copies),
        "params": tuple([_memory(p, dtype, copies) for p in inputs.params]),
        "num_iters": inputs.num_iters,
        "mean": _memory(inputs.mean, dtype, copies),
        "log_std": _memory(inputs.log_std, dtype, copies),
        "prior": _memory(inputs.prior, dtype, copies),
        "indices": _memory(inputs.indices, torch.int64, copies),
        "mask": _memory(inputs.mask, torch.bool, copies),
        "slot_mask": _memory(inputs.slot_mask, torch.bool, copies),
        "var_floor": _memory(inputs.var_floor, dtype, copies),
    }


def _forward_cpu(*arguments: Any) -> list[Tensor]:
    *given, attention, every, history, save = arguments
    inputs = Inputs(*given)
    spec, copies = _spec(inputs.config), list[Tensor]()
    found = _core.forward(
        **_arguments(inputs, spec, copies),
        attention=attention,
        history=history,
        state=every,
        save=save,
    )
    names = result_names(spec, Wanted(attention, every, history))
    arrays = [getattr(found, name) for name in (*names, *(("saved",) if save else ()))]
    return [torch.from_numpy(a) for a in arrays]


def _backward_cpu(*arguments: Any) -> list[Tensor]:
    given, saved, d_outputs = arguments[:-7], arguments[-7], arguments[-6:]
    inputs = Inputs(*given)
    if not inputs.x.shape[0]:  # empty tensors have no address
        return [torch.zeros_like(t) for t in _sources(inputs)]
    spec, copies = _spec(inputs.config), list[Tensor]()
    dtype = DTYPES[spec.dtype]
    own: dict[str, Any] = {f"d_{n}": _memory(d, dtype, copies) for n, d in zip(GRADED, d_outputs)}
    own["saved"] = _memory(saved, dtype, copies)
    found = _core.backward(**_arguments(inputs, spec, copies), **own)
    arrays = (found.mean, found.log_std, found.prior, *found.params)
    dx, *rest = [torch.from_numpy(a) for a in (found.x, *arrays) if a is not None]
    return [dx.to(inputs.x.dtype), *rest]


def _sources(inputs: Inputs) -> list[Tensor]:
    """What the operator `backward` returns gradients of."""
    sources = (inputs.x, inputs.mean, inputs.log_std, inputs.prior, *inputs.params)
    return [t for t in sources if t is not None]


def _forward_fake(*arguments: Any) -> list[Tensor]:
    *given, attention, every, history, save = arguments
    inputs = Inputs(*given)
    x, spec, steps = inputs.x, _spec(inputs.config), inputs.num_iters
    start = inputs.indices if inputs.mean is None else inputs.mean
    assert start is not None
    batch, count, slots = *x.shape[:2], start.shape[1]
    shapes: dict[str, tuple[int, ...]] = {
        "slots": (batch, slots, spec.slot_dim),
        "prior": (batch, slots),
        "state_prior": (batch, slots),
        "log_likelihood": (batch,),
        "attention": (batch, count, slots),
        "iterations": (batch,),
        "step_movement": (batch, steps),
        "step_log_likelihood": (batch, steps),
        "step_prior": (batch, steps, slots),
    }
    results = [
        x.new_empty(
            shapes.get(name, (batch, slots, spec.dim)),
            dtype=torch.int64 if name == "iterations" else DTYPES[spec.dtype],
        )
        for name in result_names(spec, Wanted(attention, every, history))
    ]
    if save:
        size = _saved_size(spec, batch, count, slots, steps)
        results.append(x.new_empty(size, dtype=DTYPES[spec.dtype]))
    return results


def _saved_size(spec: Spec, batch: int, count: int, slots: int, num_iters: int) -> int:
    """What the core saves, in operations that symbolic sizes have too (see smm_saved_rule)."""
    rule = _core.saved_rule(spec.config, int(slots), num_iters)
    layers = (count + rule["inputs"] - 1) // rule["inputs"] * rule["block"]
    most = rule["most_of_small"] if layers <= rule["small"] else rule["most"]
    return batch * (rule["image"] + (layers if batch * layers <= most else 0))


def _backward_fake(*arguments: Any) -> list[Tensor]:
    inputs = Inputs(*arguments[:-7])
    return [t.new_empty(t.shape) for t in _sources(inputs)]


_LIBRARY.impl("forward", _forward_cpu, "CPU")
_LIBRARY.impl("backward", _backward_cpu, "CPU")
torch.library.register_fake("smm_py::forward", _forward_fake)
torch.library.register_fake("smm_py::backward", _backward_fake)


class _Refuse(torch.autograd.Function):
    """A gradient that has none itself, and says so instead of passing for a constant."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, source: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, *unused: Tensor) -> None:
        raise RuntimeError(
            "smm_py.torch modules can be differentiated once: their gradients have no gradient"
        )


class _CoreFunction(torch.autograd.Function):
    """Differentiable in x, the states and the parameters, through every output."""

    @staticmethod
    def forward(
        ctx: Any,
        config: str,
        num_iters: int,
        names: tuple[str, ...],
        wanted: Wanted,
        x: Tensor,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        states, params = tensors[:7], tensors[7:]
        *results, saved = torch.ops.smm_py.forward(
            x, params, *states, config, num_iters, *wanted, True
        )
        # the derivative of log_std, a result on which no other depends, needs the variance
        variance = results[names.index("variance")] if "state_log_std" in names else None
        ctx.save_for_backward(saved, variance, x, *tensors)
        ctx.config, ctx.num_iters, ctx.names = config, num_iters, names
        if not torch.compiler.is_compiling():
            # zeros for what carries no gradient would be made, and differentiated
            ctx.set_materialize_grads(False)
        differentiable = GRADED if "state_mean" in names else (*GRADED, "state_log_std")
        constant = [r for name, r in zip(names, results) if name not in differentiable]
        ctx.mark_non_differentiable(*constant)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            grads = _CoreFunction.gradients(ctx, dict(zip(ctx.names, d_results)))
        if torch.is_grad_enabled():  # create_graph=True: whoever differentiates these is told
            source = next(t for t in ctx.saved_tensors if t is not None and t.requires_grad)
            grads = tuple(g if g is None else _Refuse.apply(g, source) for g in grads)
        return grads

    @staticmethod
    def gradients(ctx: Any, d: dict[str, Tensor | None]) -> tuple[Tensor | None, ...]:
        saved, variance, x, *tensors = ctx.saved_tensors
        states, params = tensors[:7], tensors[7:]
        d_log_std = d.get("state_log_std")
        if d_log_std is not None and "state_mean" not in ctx.names:
            # an inactive slot's variance may be 0 or infinite
            d_log_std = d_log_std / (2 * variance.clamp_min(torch.finfo(x.dtype).tiny))
            d_variance = d["variance"]
            d["variance"] = d_log_std if d_variance is None else d_variance + d_log_std
        d_outputs = [d.get(name) for name in GRADED]
        if all(g is None for g in d_outputs):
            return (None,) * len(ctx.needs_input_grad)
        call = (x, params, *states, ctx.config, ctx.num_iters, saved, *d_outputs)
        dx, *rest = torch.ops.smm_py.backward(*call)
        left = iter(rest)
        d_states = [None if state is None else next(left) for state in states[:3]]
        return None, None, None, None, dx, *d_states, None, None, None, None, *left


def _refuse_tangents(tensors: Sequence[Tensor | None]) -> None:
    """The bare operator would drop them without a word."""
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        raise NotImplementedError(
            "slot modules have no forward-mode derivatives on CPU tensors (torch.func.jvp, "
            "jacfwd); use reverse mode"
        )


def run(spec: Spec, inputs: Inputs, wanted: Wanted) -> dict[str, Tensor]:
    """A call on CPU tensors in the C core: `result_names`, those of `GRADED` with gradients."""
    x, params, *states, config, num_iters = inputs
    names = result_names(spec, wanted)
    tensors = (x, inputs.mean, inputs.log_std, inputs.prior, *params)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        found = _CoreFunction.apply(config, num_iters, names, wanted, x, *states, *params)
    else:
        _refuse_tangents(tensors)
        found = torch.ops.smm_py.forward(*inputs, *wanted, False)
    return dict(zip(names, found))
