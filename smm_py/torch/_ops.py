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
from .lean import DTYPES, Output


class Inputs(NamedTuple):
    """What both operators begin with: arguments of the core, and a Spec as `config_text` has it."""

    x: Tensor
    params: Sequence[Tensor]
    mean: Tensor | None
    log_std: Tensor | None
    indices: Tensor | None
    mask: Tensor | None
    slot_mask: Tensor | None
    config: str
    num_iters: int


class Results(NamedTuple):
    """What the operator `forward` returns; what was not computed is an empty tensor."""

    slots: Tensor
    mean: Tensor
    variance: Tensor
    prior: Tensor
    log_likelihood: Tensor
    attention: Tensor
    iterations: Tensor
    saved: Tensor


_INPUTS = (
    "Tensor x, Tensor[] params, Tensor? mean, Tensor? log_std, Tensor? indices, Tensor? mask, "
    "Tensor? slot_mask, str config, int num_iters"
)
_LIBRARY = torch.library.Library("smm_py", "DEF")
# a list, as the dispatcher takes 5 us longer over eight results; `Results` names them
_LIBRARY.define(f"forward({_INPUTS}, bool attention, bool save) -> Tensor[]")
_LIBRARY.define(
    f"backward({_INPUTS}, Tensor saved, Tensor d_slots, Tensor? d_attention) -> Tensor[]"
)


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
        "indices": _memory(inputs.indices, torch.int64, copies),
        "mask": _memory(inputs.mask, torch.bool, copies),
        "slot_mask": _memory(inputs.slot_mask, torch.bool, copies),
    }


def _tensors(arrays: Sequence[Any], dtype: torch.dtype) -> list[Tensor]:
    return [torch.empty(0, dtype=dtype) if a is None else torch.from_numpy(a) for a in arrays]


def _forward_cpu(*arguments: Any) -> list[Tensor]:
    *given, attention, save = arguments
    inputs = Inputs(*given)
    spec = _spec(inputs.config)
    copies: list[Tensor] = []
    found = _core.forward(**_arguments(inputs, spec, copies), attention=attention, save=save)
    return _tensors(found, DTYPES[spec.dtype])


def _backward_cpu(*arguments: Any) -> list[Tensor]:
    *given, saved, d_slots, d_attention = arguments
    inputs = Inputs(*given)
    spec = _spec(inputs.config)
    copies: list[Tensor] = []
    dtype = DTYPES[spec.dtype]
    own: dict[str, Any] = {
        "saved": _memory(saved, dtype, copies),
        "d_slots": _memory(d_slots, dtype, copies),
        "d_attention": _memory(d_attention, dtype, copies),
    }
    found = _core.backward(**_arguments(inputs, spec, copies), **own)
    dx, *rest = _tensors((found.x, found.mean, found.log_std, *found.params), dtype)
    return [dx.to(inputs.x.dtype), *rest]


def _forward_fake(*arguments: Any) -> list[Tensor]:
    *given, attention, save = arguments
    inputs = Inputs(*given)
    x, spec = inputs.x, _spec(inputs.config)
    start = inputs.indices if inputs.mean is None else inputs.mean
    assert start is not None
    batch, count, slots = *x.shape[:2], start.shape[1]

    def made(wanted: bool, *shape: int) -> Tensor:
        return x.new_empty(shape if wanted else (0,), dtype=DTYPES[spec.dtype])

    mixture = spec.is_mixture
    found = Results(
        slots=made(True, batch, slots, spec.slot_dim),
        mean=made(mixture, batch, slots, spec.dim),
        variance=made(mixture, batch, slots, spec.dim),
        prior=made(mixture, batch, slots),
        log_likelihood=made(mixture and not spec.is_reference, batch),
        attention=made(attention, batch, count, slots),
        iterations=x.new_empty(batch, dtype=torch.int64),
        saved=made(save, _saved_size(spec, batch, count, slots, inputs.num_iters) if save else 0),
    )
    return list(found)


def _saved_size(spec: Spec, batch: int, count: int, slots: int, num_iters: int) -> int:
    """What the core saves, in operations that symbolic sizes have too (see smm_saved_rule)."""
    rule = _core.saved_rule(spec.config, int(slots), num_iters)
    layers = (count + rule["inputs"] - 1) // rule["inputs"] * rule["block"]
    most = rule["most_of_small"] if layers <= rule["small"] else rule["most"]
    return batch * (rule["image"] + (layers if batch * layers <= most else 0))


def _backward_fake(*arguments: Any) -> list[Tensor]:
    inputs = Inputs(*arguments[:-3])
    x, dtype = inputs.x, DTYPES[_spec(inputs.config).dtype]
    states = [
        x.new_empty(0 if s is None else s.shape, dtype=dtype) for s in (inputs.mean, inputs.log_std)
    ]
    return [x.new_empty(x.shape), *states, *(p.new_empty(p.shape) for p in inputs.params)]


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
    """Differentiable in x, the states and the parameters, through slots and attention."""

    @staticmethod
    def forward(
        ctx: Any, config: str, num_iters: int, attention: bool, x: Tensor, *tensors: Any
    ) -> tuple[Tensor, ...]:
        states, params = tensors[:5], tensors[5:]
        call = (x, params, *states, config, num_iters, attention, True)
        found = Results(*torch.ops.smm_py.forward(*call))
        ctx.save_for_backward(found.saved, x, *tensors)
        ctx.config, ctx.num_iters, ctx.attention = config, num_iters, attention
        ctx.shape = found.slots.shape
        if not torch.compiler.is_compiling():
            # zeros for what carries no gradient, six tensors, would be made in each backward pass
            ctx.set_materialize_grads(False)
        constant = (found.mean, found.variance, found.prior, found.log_likelihood, found.iterations)
        ctx.mark_non_differentiable(*constant, *(() if attention else (found.attention,)))
        return found[:-1]

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            grads = _CoreFunction.gradients(ctx, *d_results)
        if torch.is_grad_enabled():  # create_graph=True: whoever differentiates these is told
            source = next(t for t in ctx.saved_tensors if t is not None and t.requires_grad)
            grads = tuple(g if g is None else _Refuse.apply(g, source) for g in grads)
        return grads

    @staticmethod
    def gradients(ctx: Any, *d_results: Tensor | None) -> tuple[Tensor | None, ...]:
        d = Output(*d_results)  # type: ignore[arg-type]
        d_slots, d_attention = d.slots, d.attention if ctx.attention else None
        if d_slots is None:
            if d_attention is None:
                return (None,) * len(ctx.needs_input_grad)
            d_slots = d_attention.new_zeros(ctx.shape)
        saved, x, mean, log_std, indices, mask, slot_mask, *params = ctx.saved_tensors
        states = (mean, log_std, indices, mask, slot_mask)
        call = (x, params, *states, ctx.config, ctx.num_iters, saved, d_slots, d_attention)
        dx, d_mean, d_log_std, *d_params = torch.ops.smm_py.backward(*call)
        d_mean = None if mean is None else d_mean
        d_log_std = None if log_std is None else d_log_std
        return None, None, None, dx, d_mean, d_log_std, None, None, None, *d_params


def _refuse_tangents(tensors: Sequence[Tensor | None]) -> None:
    """The bare operator would drop them without a word."""
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        raise NotImplementedError(
            "slot modules have no forward-mode derivatives on CPU tensors (torch.func.jvp, "
            "jacfwd); use reverse mode"
        )


def run(spec: Spec, inputs: Inputs, attention: bool) -> Output:
    """A call on CPU tensors in the C core.

    mean, variance, prior and log_likelihood carry no gradient; slots and attention do.
    """
    x, params, *states, config, num_iters = inputs
    tensors = (x, inputs.mean, inputs.log_std, *params)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        found = Output(*_CoreFunction.apply(config, num_iters, attention, x, *states, *params))
    else:
        _refuse_tangents(tensors)
        found = Output(*torch.ops.smm_py.forward(*inputs, attention, False)[:-1])
    mixture = spec.is_mixture
    return Output(
        slots=found.slots,
        mean=found.mean if mixture else None,
        variance=found.variance if mixture else None,
        prior=found.prior if mixture else None,
        log_likelihood=found.log_likelihood if mixture and not spec.is_reference else None,
        attention=found.attention if attention else None,
        iterations=found.iterations,
    )
