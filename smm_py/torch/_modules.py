"""The PyTorch twins of `smm_py`'s modules."""

from __future__ import annotations

import contextlib
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn

from .._modules import _check_seed as check_seed
from .._spec import Spec, count, initial_parameters, initial_state_names, parameter_shapes
from . import _lean, _ops
from ._lean import DTYPES, Result

_force_lean = False


@contextlib.contextmanager
def force_lean():
    """Run CPU tensors in PyTorch operations too, as tensors on other devices; for tests."""
    global _force_lean
    before, _force_lean = _force_lean, True
    try:
        yield
    finally:
        _force_lean = before


AUTOCAST = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
)  # what autocast passes from one layer to the next


def _check(name, value, dtype, shape=None, device=None):
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if device is not None and value.device != device:
        raise ValueError(f"{name} must be on {device} as x is, got {value.device}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be a {dtype} tensor, got {value.dtype}")
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")


class _Module(nn.Module):
    """What the twins share. Parameters are named as in the NumPy modules, so files serve both."""

    formulas = None  # of a subclass: what it computes in place of the core, see `Formulas`

    def __init__(self, spec: Spec, seed):
        super().__init__()
        if seed is None:
            seed = int(torch.randint(2**62, (), device="cpu"))
        self._spec = spec
        # for every dtype that .double() or .float() may bring; made here, as graphs cannot make them
        self._specs = {
            dtype: spec.but(dtype=name) for name, dtype in DTYPES.items() if spec.suits(name)
        }
        self._configs = {dtype: _ops.config_text(other) for dtype, other in self._specs.items()}
        check_seed(seed)
        values = initial_parameters(spec, np.random.default_rng(int(seed)))
        self._leaves = {}  # path of a submodule -> (parameter's name, its name there)
        for name in parameter_shapes(spec):
            *path, leaf = name.split(".")
            owner = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            owner.register_parameter(
                leaf, nn.Parameter(torch.from_numpy(values[name]).to(torch.get_default_device()))
            )
            self._leaves.setdefault(tuple(path), []).append((name, leaf))
        if spec.start == "inputs":  # nothing is drawn from these
            for name in initial_state_names(spec)[:2]:
                getattr(self, name).requires_grad_(False)

    @property
    def slot_dim(self) -> int:
        """Width of a slot in the output: `dim`, or twice that where mean and variance stand side by side."""
        return self._spec.slot_dim

    def _named(self):
        """Name -> parameter, whatever stands in its place (functional_call, a parametrization, another submodule)."""
        named = {}
        for path, leaves in self._leaves.items():
            owner = self
            for part in path:
                owner = owner._modules[part]
            there = owner._parameters
            for name, leaf in leaves:
                named[name] = there[leaf] if leaf in there else getattr(owner, leaf)
        return named

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        """What the initial state is drawn from may be of each slot, (K, D), in place of one for all, (D)."""
        for name in initial_state_names(self._spec):
            new, own = state_dict.get(prefix + name), self._parameters.get(name)
            shapes = (self._spec.num_slots, self._spec.dim), (self._spec.dim,)
            if (
                isinstance(new, Tensor)
                and not new.is_meta
                and own is not None
                and new.shape != own.shape
                and new.shape in shapes
            ):
                own.data, own.grad = (
                    torch.empty_like(new, dtype=own.dtype, device=own.device),
                    None,
                )  # the parameter that optimizers know
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        values = asdict(self._spec)
        return ", ".join(f"{name}={values[name]!r}" for name in self._OPTIONS)

    def forward(
        self,
        x,
        init=None,
        mask=None,
        slot_mask=None,
        num_iters=None,
        num_slots=None,
        generator=None,
        return_attention=False,
    ):
        """Slots of a batch.

        Parameters
        ----------
        x : (B, N, input_dim). Under autocast float16, bfloat16 and float32 are taken as the module's dtype,
            in init too, and all inside is of it; else x must have it, or bfloat16 with `bfloat16_inputs`.
        init : dict, optional. "slots", or "mean" and "log_std", (B, K, D); or "indices" (B, K)
            int64, rows of h where the means start, with "log_std" for mixtures. Drawn if not given.
        mask : (B, N) bool, optional. True where an input is real.
        slot_mask : (B, K) bool, optional. True where a slot is active.
        num_iters, num_slots : int, optional. In place of the module's own.
        generator : torch.Generator, optional. Of the drawn state; or a list of one for each image, whose state then
            depends on nothing else. One of the CPU draws the same for x on every device.
        return_attention : bool.

        Returns
        -------
        slots (B, K, D) (or 2D), or (slots, attention (B, N, K)). A NaN in x stays in its image, whose slots are NaN.

        Raises
        ------
        TypeError, ValueError, KeyError
            For a wrong type, dtype, shape, device or value, or wrong names in `init`, naming the argument. In compiled
            graphs what masks and indices hold is not looked at: slots that find no input of their own share the first.
        """
        result = self.run(
            x, init, mask, slot_mask, num_iters, num_slots, generator, return_attention
        )
        return (result.slots, result.attention) if return_attention else result.slots

    def run(
        self,
        x,
        init=None,
        mask=None,
        slot_mask=None,
        num_iters=None,
        num_slots=None,
        generator=None,
        return_attention=False,
    ) -> Result:
        """As `forward`, with all outputs: slots, mean, variance, prior, log_likelihood, attention, iterations.

        On the CPU gradients flow through slots and attention alone (with `reduce=False` slots are
        [mean, variance]).
        """
        spec, params, dtype, autocast, x, init = self._prepare(x, init)
        if not isinstance(return_attention, bool):
            raise TypeError(f"return_attention must be True or False, got {return_attention!r}")
        iters = spec.num_iters if num_iters is None else num_iters
        count("num_iters", iters)
        with torch.autocast(x.device.type, enabled=False) if autocast else contextlib.nullcontext():
            if init is None:
                slots = spec.num_slots if num_slots is None else num_slots
                count("num_slots", slots)
                _check_masks(x, mask, slot_mask, slots)
                init = self._draw(spec, params, x, mask, slot_mask, slots, generator)
                state = self._state(spec, init, x, dtype, num_slots)
            else:
                if num_slots is not None:
                    count("num_slots", num_slots)
                if generator is not None:
                    _check_generator(generator, x.shape[0])
                state = self._state(spec, init, x, dtype, num_slots)
                first = next(s for s in (state[2], state[0]) if s is not None)
                _check_masks(x, mask, slot_mask, first.shape[1], state[2])
            if x.device.type == "cpu" and not _force_lean and self.formulas is None:
                drawn = initial_state_names(spec)
                arrays = tuple(p for name, p in params.items() if name not in drawn)
                return _ops.run(
                    spec,
                    self._configs[dtype],
                    x,
                    arrays,
                    *state,
                    mask,
                    slot_mask,
                    iters,
                    return_attention,
                )
            rest = mask, slot_mask, iters, return_attention, self.formulas
            return _lean.run(spec, x, params, *state, *rest)

    def _prepare(self, x, init=None):
        """(spec, parameters, their dtype, whether autocast is on, x, init) of a call, checked and brought to the module's dtype."""
        spec = self._spec
        params = self._named()
        dtype = next(iter(params.values())).dtype if params else DTYPES[spec.dtype]
        if dtype not in self._specs:
            allowed = " or ".join(str(d).removeprefix("torch.") for d in self._specs)
            raise TypeError(f"the module must be of {allowed}, its parameters are {dtype}")
        spec = self._specs[dtype]
        of_x = torch.bfloat16 if spec.bfloat16_inputs else dtype
        autocast = isinstance(x, Tensor) and _autocasts(x.device.type)
        if autocast:
            x = x.to(of_x) if x.dtype in AUTOCAST else x
            if isinstance(init, dict):
                init = {
                    name: value.to(dtype)
                    if isinstance(value, Tensor) and value.dtype in AUTOCAST
                    else value
                    for name, value in init.items()
                }
        _check("x", x, of_x)
        if x.dim() != 3 or x.shape[2] != spec.input_dim:
            raise ValueError(f"x must have shape (B, N, {spec.input_dim}), got {tuple(x.shape)}")
        if 0 in x.shape:
            raise ValueError(
                f"x must hold at least one image of at least one input, got shape {tuple(x.shape)}"
            )
        for name, value in params.items():
            if value.device != x.device:
                raise ValueError(
                    f"x must be on {value.device} as the parameter {name} is, got {x.device}"
                )
            if value.dtype != dtype:
                raise TypeError(
                    f"the parameter {name} must be a {dtype} tensor as the others are, got {value.dtype}"
                )
        return spec, params, dtype, autocast, x, init

    def initial_state(self, x, mask=None, slot_mask=None, num_slots=None, generator=None):
        """An initial state for x, drawn as a call without `init` draws it: the dict that `init` takes."""
        spec, params, _, autocast, x, _ = self._prepare(x)
        slots = spec.num_slots if num_slots is None else num_slots
        count("num_slots", slots)
        _check_masks(x, mask, slot_mask, slots)
        with torch.autocast(x.device.type, enabled=False) if autocast else contextlib.nullcontext():
            return self._draw(spec, params, x, mask, slot_mask, slots, generator)

    def _state(self, spec, init, x, dtype, num_slots):
        """(state0, state1, indices) of an `init` dict, checked."""
        if not isinstance(init, dict):
            raise TypeError(f"init must be a dict of tensors, got {type(init).__name__}")
        names = spec.state_names
        if set(init) not in ({*names}, {"indices", *names[1:]}):
            raise KeyError(
                f"init must hold {list(names)} or {['indices', *names[1:]]}, got {sorted(map(str, init))}"
            )
        indices = init.get("indices")
        first = init.get(names[0]) if indices is None else indices
        if not isinstance(first, Tensor) or first.dim() != (3 if indices is None else 2):
            got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise ValueError(
                f"init must hold a tensor of shape (B, K{', D' if indices is None else ''}), got {got}"
            )
        batch, slots = x.shape[0], first.shape[1]
        if slots == 0:
            raise ValueError("init must hold at least one slot, got none")
        if num_slots is not None and num_slots != slots:
            raise ValueError(
                f"num_slots must agree with init, which has {slots} slots, got {num_slots}"
            )
        for name in init:
            if name == "indices":
                _check("init['indices']", indices, torch.int64, (batch, slots), x.device)
            else:
                _check(f"init[{name!r}]", init[name], dtype, (batch, slots, spec.dim), x.device)
        return init.get(names[0]), init.get("log_std"), indices

    def _draw(self, spec, params, x, mask, slot_mask, slots, generator):
        shape = (x.shape[0], slots, spec.dim)
        if spec.bfloat16_inputs:
            x = x.to(DTYPES[spec.dtype])

        def normal():
            return _random(torch.randn, shape, x.dtype, x.device, generator)

        def located(mu, logsigma):
            for name in (mu, logsigma):
                own = tuple(params[name].shape)
                if len(own) == 2 and own[1] == spec.dim and own[0] != slots:
                    raise ValueError(
                        f"num_slots must be {own[0]}, as {name} has one row for each slot, got {slots}"
                    )
                if own not in ((spec.dim,), (slots, spec.dim)):
                    raise ValueError(
                        f"{name} must have shape {(spec.dim,)} or {(slots, spec.dim)}, got {own}"
                    )
            return params[mu] + params[logsigma].exp() * normal()

        init = {}
        first = spec.state_names[0]
        names = initial_state_names(spec)
        if spec.start == "inputs":
            init["indices"] = _draw_indices(x, mask, slot_mask, slots, generator)
        else:
            init[first] = located(*names[:2]) if names else normal()
        if spec.kind == "slot_mixture":
            init["log_std"] = located(*names[2:])
        elif spec.kind == "gaussian_mixture":
            init["log_std"] = _spread(x, mask).expand(shape).contiguous()
        return init


def _random(draw, shape, dtype, device, generator):
    """draw(shape) on a device: from PyTorch's own generator, from one that may be elsewhere, or each image's from its own."""
    if generator is None:  # graphs of dynamic shapes take no generator, not even None
        return draw(shape, dtype=dtype, device=device)
    if isinstance(generator, torch.Generator):
        return draw(shape, dtype=dtype, device=generator.device, generator=generator).to(device)
    _check_generator(generator, shape[0])
    return torch.stack(
        [draw(shape[1:], dtype=dtype, device=g.device, generator=g) for g in generator]
    ).to(device)


def _check_generator(generator, images):
    if isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, (list, tuple)) or not all(
        isinstance(g, torch.Generator) for g in generator
    ):
        raise TypeError(
            f"generator must be a torch.Generator, or a list of one for each image, got {type(generator).__name__}"
        )
    if len(generator) != images:
        raise ValueError(
            f"generator must hold one for each of the {images} images, got {len(generator)}"
        )


def _autocasts(device_type):
    """Whether autocast is on; there are devices without it, such as "meta"."""
    there = torch.compiler.is_compiling() or torch.amp.is_autocast_available(
        device_type
    )  # not to be asked in graphs of old PyTorch
    return there and torch.is_autocast_enabled(device_type)


def _check_masks(x, mask, slot_mask, slots, indices=None):
    """Masks, and indices where they are given; what numbers they hold is not looked at in graphs or without memory."""
    looks = not torch.compiler.is_compiling() and x.device.type != "meta"
    for name, value, size, what in (
        ("mask", mask, x.shape[1], "a real input"),
        ("slot_mask", slot_mask, slots, "an active slot"),
    ):
        if value is None:
            continue
        _check(name, value, torch.bool, (x.shape[0], size), x.device)
        empty = (~value.any(1)).nonzero() if looks else ()
        if len(empty):
            raise ValueError(
                f"{name} must leave every image {what}, got none in image {int(empty[0])}"
            )
    if indices is not None and looks:
        wrong = (indices < 0) | (indices >= x.shape[1])
        if mask is not None:
            wrong |= ~mask.gather(1, indices.clamp(0, x.shape[1] - 1))
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            raise ValueError(
                f"init['indices'] must be rows of real inputs, from 0 to {x.shape[1] - 1}"
                f"{'' if mask is None else ' and not masked'}, got {int(indices[at])} at index {at}"
            )


def _draw_indices(x, mask, slot_mask, slots, generator):
    """Distinct real inputs for the active slots of every image (B, K)."""
    if slots > x.shape[1] and slot_mask is None:
        raise ValueError(
            f"num_slots must not exceed the inputs that means start at: {slots} slots, "
            f"{x.shape[1]} inputs"
        )
    order = _random(torch.rand, x.shape[:2], None, x.device, generator)
    if mask is not None:
        order = order.masked_fill(~mask, -1)
    most = slots if slot_mask is None else min(slots, x.shape[1])
    chosen, indices = order.topk(most)
    if mask is None and slot_mask is None:
        return indices
    rank = torch.arange(slots, device=x.device).expand(x.shape[0], -1)
    if slot_mask is not None:  # the active slots take the first of them
        rank = torch.where(slot_mask, slot_mask.cumsum(1) - 1, 0)
    there = rank.clamp(max=most - 1)
    drawn = indices.gather(1, there)
    real = (chosen.gather(1, there) >= 0) & (rank < most)
    if not torch.compiler.is_compiling():
        short = ~real if slot_mask is None else ~real & slot_mask
        if short.any():
            image = int(short.any(1).nonzero()[0])
            raise ValueError(
                "num_slots must not exceed the real inputs that means start at: too few in "
                f"image {image}"
            )
    return torch.where(real, drawn, indices[:, :1])


def _spread(x, mask):
    """Log standard deviation of each image's real inputs, (B, 1, D)."""
    weights = (
        torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
        if mask is None
        else mask.to(x.dtype)
    )
    weights = (weights / weights.sum(1, keepdim=True))[..., None]
    x = x if mask is None else torch.where(mask[..., None], x, 0)  # what is masked may be NaN
    mean = (weights * x).sum(1, keepdim=True)
    return 0.5 * torch.log((weights * (x - mean) ** 2).sum(1, keepdim=True) + 1e-4).detach()


def _dtype_name(dtype):
    return str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype


class SlotAttention(_Module):
    """Slot Attention (Locatello et al. 2020); arguments as `smm_py.SlotAttention`.

    `seed=None` takes the initial weights from PyTorch's generator (`torch.manual_seed`).
    """

    _OPTIONS = (
        "dim",
        "num_slots",
        "num_iters",
        "hidden_dim",
        "input_dim",
        "eps",
        "start",
        "gradient",
        "dtype",
        "scale",
        "heads",
        "qkv_bias",
        "tol",
        "recompute",
        "bfloat16_inputs",
    )

    def __init__(
        self,
        dim=64,
        num_slots=7,
        num_iters=3,
        hidden_dim=128,
        input_dim=None,
        eps=1e-8,
        start="gaussian",
        gradient="implicit",
        dtype="float32",
        seed=None,
        *,
        scale=None,
        heads=1,
        qkv_bias=False,
        tol=0.0,
        recompute=False,
        bfloat16_inputs=False,
    ):
        super().__init__(
            Spec(
                "slot_attention",
                dim,
                num_slots,
                num_iters,
                hidden_dim,
                input_dim,
                eps=eps,
                start=start,
                gradient=gradient,
                dtype=_dtype_name(dtype),
                scale=scale,
                heads=heads,
                qkv_bias=qkv_bias,
                tol=tol,
                recompute=recompute,
                bfloat16_inputs=bfloat16_inputs,
            ),
            seed,
        )


class SlotMixture(_Module):
    """Slot Mixture Module (Kirilenko et al. 2024); arguments as `smm_py.SlotMixture`.

    `seed=None` takes the initial weights from PyTorch's generator (`torch.manual_seed`).
    """

    _OPTIONS = (
        "dim",
        "num_slots",
        "num_iters",
        "hidden_dim",
        "input_dim",
        "variant",
        "slot_norm",
        "norm_kv",
        "input_mlp",
        "prior",
        "temperature",
        "reduce",
        "weight_init",
        "start",
        "gradient",
        "dtype",
        "eps",
        "scale",
        "qkv_bias",
        "tol",
        "recompute",
        "bfloat16_inputs",
    )

    def __init__(
        self,
        dim=64,
        num_slots=10,
        num_iters=5,
        hidden_dim=128,
        input_dim=None,
        variant="paper",
        slot_norm=False,
        norm_kv=False,
        input_mlp=True,
        prior="learned",
        temperature=1.0,
        reduce=True,
        weight_init="em",
        start="gaussian",
        gradient="implicit",
        dtype="float32",
        seed=None,
        *,
        eps=1e-8,
        scale=None,
        qkv_bias=False,
        tol=0.0,
        recompute=False,
        bfloat16_inputs=False,
    ):
        super().__init__(
            Spec(
                "slot_mixture",
                dim,
                num_slots,
                num_iters,
                hidden_dim,
                input_dim,
                variant,
                slot_norm,
                norm_kv,
                input_mlp,
                prior,
                temperature,
                reduce,
                weight_init=weight_init,
                start=start,
                gradient=gradient,
                dtype=_dtype_name(dtype),
                eps=eps,
                scale=scale,
                qkv_bias=qkv_bias,
                tol=tol,
                recompute=recompute,
                bfloat16_inputs=bfloat16_inputs,
            ),
            seed,
        )


class KMeans(_Module):
    """Differentiable soft K-Means; arguments as `smm_py.KMeans`, without a seed: it has no weights. Takes (B, N, dim)."""

    _OPTIONS = (
        "dim",
        "num_slots",
        "num_iters",
        "scale",
        "eps",
        "start",
        "gradient",
        "dtype",
        "tol",
        "recompute",
        "bfloat16_inputs",
    )

    def __init__(
        self,
        dim=64,
        num_slots=7,
        num_iters=10,
        scale=None,
        eps=1e-8,
        start="inputs",
        gradient="full",
        dtype="float32",
        *,
        tol=0.0,
        recompute=False,
        bfloat16_inputs=False,
    ):
        super().__init__(
            Spec(
                "kmeans",
                dim,
                num_slots,
                num_iters,
                scale=scale,
                eps=eps,
                start=start,
                gradient=gradient,
                dtype=_dtype_name(dtype),
                tol=tol,
                recompute=recompute,
                bfloat16_inputs=bfloat16_inputs,
            ),
            0,
        )


class GaussianMixture(_Module):
    """Differentiable EM for a Gaussian mixture; arguments as `smm_py.GaussianMixture`, without a seed: it has no weights.
    Takes (B, N, dim)."""

    _OPTIONS = (
        "dim",
        "num_slots",
        "num_iters",
        "prior",
        "temperature",
        "eps",
        "start",
        "gradient",
        "dtype",
        "tol",
        "recompute",
        "bfloat16_inputs",
    )

    def __init__(
        self,
        dim=64,
        num_slots=10,
        num_iters=10,
        prior="learned",
        temperature=1.0,
        eps=1e-8,
        start="inputs",
        gradient="full",
        dtype="float32",
        *,
        tol=0.0,
        recompute=False,
        bfloat16_inputs=False,
    ):
        super().__init__(
            Spec(
                "gaussian_mixture",
                dim,
                num_slots,
                num_iters,
                prior=prior,
                temperature=temperature,
                eps=eps,
                start=start,
                gradient=gradient,
                dtype=_dtype_name(dtype),
                tol=tol,
                recompute=recompute,
                bfloat16_inputs=bfloat16_inputs,
            ),
            0,
        )
