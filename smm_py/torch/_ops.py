"""The C core as PyTorch operators.

`smm_py::forward` and `smm_py::backward` have kernels for CPU tensors and fake kernels, so that
`torch.compile` and `torch.export` see them; the derivative is an `autograd.Function` around them.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _core
from .._modules import core_config
from .._spec import Spec
from ._lean import DTYPES, Result

_LIBRARY = torch.library.Library("smm_py", "DEF")
_LIBRARY.define(
    "forward(Tensor x, Tensor[] params, Tensor? state0, Tensor? state1, Tensor? indices, Tensor? mask, "
    "Tensor? slot_mask, str config, int num_iters, bool attention, bool save) -> Tensor[]"
)
_LIBRARY.define(
    "backward(Tensor x, Tensor[] params, Tensor? state0, Tensor? state1, Tensor? indices, Tensor? mask, "
    "Tensor? slot_mask, str config, int num_iters, Tensor saved, Tensor d_slots, Tensor? d_attention) -> Tensor[]"
)


def config_text(spec: Spec) -> str:
    """A Spec as the operators take it: text, which graphs can hold.

    It also tells how much the core saves of a small call: compiled graphs have such sizes in them and are kept on disk, so
    that one made with another version of the core must not pass for one of this.
    """
    saved = (
        _core.saved_size(core_config(spec), 1, 65, 2, 2),
        _core.SAVED_MOST,
        _core.SAVED_IMAGE,
        _core.SAVED_BATCH,
    )
    return json.dumps({**asdict(spec), "saved": saved})


@functools.lru_cache(maxsize=256)
def _spec(config: str) -> Spec:
    return Spec(**{name: value for name, value in json.loads(config).items() if name != "saved"})


def _memory(tensor, dtype, keep):
    """(address, shape), what the core takes without a copy; `keep` holds what must live until it is done."""
    if tensor is None:
        return None
    if tensor.dtype is not dtype:
        raise TypeError(f"expected tensors of {dtype}, got one of {tensor.dtype}")
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
        keep.append(tensor)
    return tensor.data_ptr(), tensor.shape


def _arguments(x, params, state0, state1, indices, mask, slot_mask, config, num_iters, keep):
    """The arguments that both calls of the core begin with."""
    spec = _spec(config)
    dtype = DTYPES[spec.dtype]
    return (
        core_config(spec),
        _memory(x, torch.bfloat16 if spec.bfloat16_inputs else dtype, keep),
        tuple([_memory(p, dtype, keep) for p in params]),
        _memory(state0, dtype, keep),
        _memory(state1, dtype, keep),
        _memory(indices, torch.int64, keep),
        _memory(mask, torch.bool, keep),
        _memory(slot_mask, torch.bool, keep),
        num_iters,
    )


def _tensors(arrays, dtype):
    return [torch.empty(0, dtype=dtype) if a is None else torch.from_numpy(a) for a in arrays]


def _forward_cpu(
    x, params, state0, state1, indices, mask, slot_mask, config, num_iters, attention, save
):
    keep = []
    results = _core.forward(
        *_arguments(x, params, state0, state1, indices, mask, slot_mask, config, num_iters, keep),
        attention,
        save,
    )
    return _tensors(results, DTYPES[_spec(config).dtype])


def _backward_cpu(
    x,
    params,
    state0,
    state1,
    indices,
    mask,
    slot_mask,
    config,
    num_iters,
    saved,
    d_slots,
    d_attention,
):
    keep, dtype = [], DTYPES[_spec(config).dtype]
    dx, d_state0, d_state1, d_params = _core.backward(
        *_arguments(x, params, state0, state1, indices, mask, slot_mask, config, num_iters, keep),
        *(_memory(t, dtype, keep) for t in (saved, d_slots, d_attention)),
    )
    dx, *rest = _tensors((dx, d_state0, d_state1, *d_params), dtype)
    return [dx.to(x.dtype), *rest]


_LIBRARY.impl("forward", _forward_cpu, "CPU")
_LIBRARY.impl("backward", _backward_cpu, "CPU")


@torch.library.register_fake("smm_py::forward")
def _forward_fake(
    x, params, state0, state1, indices, mask, slot_mask, config, num_iters, attention, save
):
    spec = _spec(config)
    batch, inputs = x.shape[:2]
    slots = (indices if state0 is None else state0).shape[1]
    state = (batch, slots, spec.dim)
    none = (0,)
    mixture = spec.is_mixture
    shapes = [
        (batch, slots, spec.slot_dim),
        state if mixture else none,
        state if mixture else none,
        (batch, slots) if mixture else none,
        (batch,) if mixture and not spec.is_reference else none,
        (batch, inputs, slots) if attention else none,
    ]
    shapes.append((_saved_size(spec, batch, inputs, slots, num_iters),) if save else none)
    *results, saved = (x.new_empty(s, dtype=DTYPES[spec.dtype]) for s in shapes)
    return [*results, x.new_empty(batch, dtype=torch.int64), saved]


def _saved_size(spec, batch, inputs, slots, num_iters):
    """What the core says, in operations that symbolic sizes have too: of each image, and of each 64 of its inputs."""
    image, one = (
        _core.saved_size(core_config(s), 1, 1, int(slots), num_iters)
        for s in (spec.but(recompute=True), spec)
    )
    layers = ((inputs + 63) // 64) * (one - image)
    most = _core.SAVED_BATCH if layers <= _core.SAVED_IMAGE else _core.SAVED_MOST
    return batch * (image + (layers if batch * layers <= most else 0))


@torch.library.register_fake("smm_py::backward")
def _backward_fake(
    x,
    params,
    state0,
    state1,
    indices,
    mask,
    slot_mask,
    config,
    num_iters,
    saved,
    d_slots,
    d_attention,
):
    dtype = DTYPES[_spec(config).dtype]
    states = [x.new_empty(0 if s is None else s.shape, dtype=dtype) for s in (state0, state1)]
    return [x.new_empty(x.shape), *states, *(p.new_empty(p.shape) for p in params)]


class _Refuse(torch.autograd.Function):
    """A gradient that has none itself, and says so instead of passing for a constant."""

    @staticmethod
    def forward(ctx, gradient, source):
        return gradient.clone()

    @staticmethod
    def backward(ctx, *unused):
        raise RuntimeError(
            "smm_py.torch modules can be differentiated once: their gradients have no gradient"
        )


class _Run(torch.autograd.Function):
    """Differentiable in x, the states and the parameters, through slots and attention."""

    @staticmethod
    def forward(
        ctx, config, num_iters, attention, x, state0, state1, indices, mask, slot_mask, *params
    ):
        *results, saved = torch.ops.smm_py.forward(
            x, params, state0, state1, indices, mask, slot_mask, config, num_iters, attention, True
        )
        ctx.save_for_backward(x, state0, state1, indices, mask, slot_mask, saved, *params)
        ctx.config, ctx.num_iters, ctx.attention, ctx.shape = (
            config,
            num_iters,
            attention,
            results[0].shape,
        )
        if (
            not torch.compiler.is_compiling()
        ):  # zeros for what carries no gradient, six tensors, would be made in each backward pass
            ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*results[1:5], *results[6 if attention else 5 :])
        return tuple(results)

    @staticmethod
    def backward(ctx, d_slots, *d_rest):
        with torch.no_grad():
            grads = _Run.gradients(ctx, d_slots, *d_rest)
        if torch.is_grad_enabled():  # create_graph=True: whoever differentiates these is told
            source = next(t for t in ctx.saved_tensors if t is not None and t.requires_grad)
            grads = tuple(g if g is None else _Refuse.apply(g, source) for g in grads)
        return grads

    @staticmethod
    def gradients(ctx, d_slots, *d_rest):
        x, state0, state1, indices, mask, slot_mask, saved, *params = ctx.saved_tensors
        d_attention = d_rest[4] if ctx.attention else None
        if d_slots is None and d_attention is None:
            return (None,) * len(ctx.needs_input_grad)
        if d_slots is None:
            d_slots = d_attention.new_zeros(ctx.shape)
        dx, d_state0, d_state1, *d_params = torch.ops.smm_py.backward(
            x,
            params,
            state0,
            state1,
            indices,
            mask,
            slot_mask,
            ctx.config,
            ctx.num_iters,
            saved,
            d_slots,
            d_attention,
        )
        return (
            None,
            None,
            None,
            dx,
            None if state0 is None else d_state0,
            None if state1 is None else d_state1,
            None,
            None,
            None,
            *d_params,
        )


def _refuse_tangents(tensors):
    """The bare operator would drop them without a word."""
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    ):
        raise NotImplementedError(
            "slot modules have no forward-mode derivatives on CPU tensors (torch.func.jvp, jacfwd); use reverse mode"
        )


def run(
    spec: Spec,
    config: str,
    x,
    params: tuple[Tensor, ...],
    state0,
    state1,
    indices,
    mask,
    slot_mask,
    num_iters,
    attention,
) -> Result:
    """As `_lean.run`, on CPU tensors in the C core; params are in the core's order, config is the spec's text.

    mean, variance, prior and log_likelihood carry no gradient; slots and attention do.
    """
    tensors = (x, state0, state1, *params)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        results = _Run.apply(
            config, num_iters, attention, x, state0, state1, indices, mask, slot_mask, *params
        )
    else:
        _refuse_tangents(tensors)
        results = torch.ops.smm_py.forward(
            x, params, state0, state1, indices, mask, slot_mask, config, num_iters, attention, False
        )
    mixture = spec.is_mixture
    return Result(
        results[0],
        *(r if mixture else None for r in results[1:4]),
        results[4] if mixture and not spec.is_reference else None,
        results[5] if attention else None,
        results[6],
    )
