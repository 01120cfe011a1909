"""The PyTorch twins of `smm_py`'s modules."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Generator, Tensor, nn

from .._arrays import check_seed, raise_index
from .._options import (
    Check,
    DType,
    GaussianMixtureOptions,
    KMeansOptions,
    Options,
    SlotAttentionOptions,
    SlotMixtureOptions,
    count,
    flag,
    option,
)
from .._spec import Spec, initial_parameters, initial_state_names, parameter_shapes
from . import _ops
from .lean import DTYPES, Formulas, Output

Generators = Generator | Sequence[Generator]
State = tuple[Tensor | None, Tensor | None, Tensor | None]  # mean (or slots), log_std, indices
_force_lean = False


@contextlib.contextmanager
def force_lean() -> Iterator[None]:
    """Run CPU tensors in PyTorch operations too, as tensors on other devices; for tests."""
    global _force_lean
    before, _force_lean = _force_lean, True
    try:
        yield
    finally:
        _force_lean = before


# what autocast passes from one layer to the next
AUTOCAST = (torch.float16, torch.bfloat16, torch.float32)


def _check(
    name: str,
    value: object,
    dtype: torch.dtype,
    shape: Sequence[int] | None = None,
    device: torch.device | None = None,
) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if device is not None and value.device != device:
        raise ValueError(f"{name} must be on {device} as x is, got {value.device}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be a {dtype} tensor, got {value.dtype}")
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")


class _Twin(Options, nn.Module):
    """What the twins share. Parameters are named as in the NumPy modules, so files serve both."""

    _kind = ""
    dtype: DType | torch.dtype = option(
        default="float32",
        check=Check("{'float32', 'float64'} or torch.dtype", lambda name, value: value),
    )
    # of a subclass: a class derived from Formulas, or a method with its arguments that makes one
    formulas: ClassVar[Callable[..., Formulas] | None] = None

    def _build(self, *, dtype: object = "float32", seed: int | None = 0, **options: Any) -> None:
        nn.Module.__init__(self)
        spec = self._spec = Spec(self._kind, dtype=_dtype_name(dtype), **options)
        if seed is None:
            seed = int(torch.randint(2**62, (), device="cpu"))
        # for .double() and .float(); made here, as graphs cannot make them
        names: tuple[DType, ...] = ("float32", "float64")
        self._specs = {DTYPES[n]: spec.but(dtype=n) for n in names if spec.suits(n)}
        self._configs = {dtype: _ops.config_text(other) for dtype, other in self._specs.items()}
        check_seed(seed)
        values = initial_parameters(spec, np.random.default_rng(int(seed)))
        # path of a submodule -> (parameter's name, its name there)
        self._leaves: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for name in parameter_shapes(spec):
            *path, leaf = name.split(".")
            owner: Any = self
            for part in path:
                owner = owner._modules.setdefault(part, nn.Module())
            value = torch.from_numpy(values[name]).to(torch.get_default_device())
            owner.register_parameter(leaf, nn.Parameter(value))
            self._leaves.setdefault(tuple(path), []).append((name, leaf))
        if spec.start == "inputs":  # nothing is drawn from these
            for name in initial_state_names(spec)[:2]:
                getattr(self, name).requires_grad_(False)

    def _option(self, name: str) -> Any:
        """A submodule of the option's name (norm_kv) where there is one: PyTorch looks for it."""
        return self._modules.get(name) or super()._option(name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in vars(self).get("_modules", ()):
            nn.Module.__setattr__(self, name, value)  # type: ignore[arg-type]
        else:
            super().__setattr__(name, value)

    @property
    def slot_dim(self) -> int:
        """Width of a slot in the output: `dim`, or 2 `dim` for [mean, variance]."""
        return self._spec.slot_dim

    def _named(self) -> dict[str, Tensor]:
        """Name -> parameter, or what stands in its place, as in functional_call."""
        named = {}
        for path, leaves in self._leaves.items():
            owner: Any = self
            for part in path:
                owner = owner._modules[part]
            there = owner._parameters
            for name, leaf in leaves:
                named[name] = there[leaf] if leaf in there else getattr(owner, leaf)
        return named

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """What the initial state is drawn from may be of all slots, (D,), or of each, (K, D)."""
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
                # in place, as optimizers hold the parameter
                own.data = torch.empty_like(new, dtype=own.dtype, device=own.device)
                own.grad = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

    def forward(
        self,
        x: Tensor,
        init: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        slot_mask: Tensor | None = None,
        num_iters: int | None = None,
        num_slots: int | None = None,
        generator: Generators | None = None,
        return_attention: bool = False,
    ) -> Any:
        """Slots of a batch.

        Parameters
        ----------
        x : (B, N, input_dim)
            Of the module's dtype, or bfloat16 with `bfloat16_inputs`. Under autocast float16,
            bfloat16 and float32 are converted to it, in `init` too.
        init : dict, optional
            "slots", or "mean" and "log_std", (B, K, D); or "indices" (B, K) int64, rows of h where
            the means start, with "log_std" for mixtures. Drawn if not given.
        mask : (B, N) bool, optional
            True where an input is real.
        slot_mask : (B, K) bool, optional
            True where a slot is active.
        num_iters : int, optional
            In place of the module's own.
        num_slots : int, optional
            In place of the module's own.
        generator : torch.Generator or list, optional
            Of the drawn state; or one for each image, whose state then depends on nothing else. A
            generator of the CPU draws the same for x on every device.
        return_attention : bool
            Return the responsibilities of the last step too.

        Returns
        -------
        slots : (B, K, D) or (B, K, 2D)
            A NaN in x stays in its image, whose slots are NaN.
        attention : (B, N, K)
            If asked for.

        Raises
        ------
        TypeError, ValueError, KeyError
            For a wrong type, dtype, shape, device or value, or wrong names in `init`, naming the
            argument. In compiled graphs the contents of masks and indices are not checked: slots
            that find no input of their own share the first.
        """
        found = self.run(
            x, init, mask, slot_mask, num_iters, num_slots, generator, return_attention
        )
        return (found.slots, found.attention) if return_attention else found.slots

    def run(
        self,
        x: Tensor,
        init: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        slot_mask: Tensor | None = None,
        num_iters: int | None = None,
        num_slots: int | None = None,
        generator: Generators | None = None,
        return_attention: bool = False,
    ) -> Output:
        """As `forward`, with all outputs.

        On the CPU gradients flow through slots and attention alone (with `reduce=False` slots are
        [mean, variance]).
        """
        spec, params, dtype, autocast, x, init = self._prepare(x, init)
        return_attention = flag("return_attention", return_attention)
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
            if self.formulas is None and x.device.type == "cpu" and not _force_lean:
                drawn = initial_state_names(spec)
                arrays = tuple(p for name, p in params.items() if name not in drawn)
                config = self._configs[dtype]
                inputs = _ops.Inputs(x, arrays, *state, mask, slot_mask, config, iters)
                return _ops.run(spec, inputs, return_attention)
            call = (self.formulas or Formulas)(spec, x, params, mask)
            return call.run(*state, slot_mask, iters, return_attention)

    def _prepare(
        self, x: Tensor, init: dict[str, Tensor] | None = None
    ) -> tuple[Spec, dict[str, Tensor], torch.dtype, bool, Tensor, dict[str, Tensor] | None]:
        """A call's spec, parameters, their dtype, whether autocast is on, x and init, checked."""
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
                    f"the parameter {name} must be a {dtype} tensor as the others are, "
                    f"got {value.dtype}"
                )
        return spec, params, dtype, autocast, x, init

    def initial_state(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        slot_mask: Tensor | None = None,
        num_slots: int | None = None,
        generator: Generators | None = None,
    ) -> dict[str, Tensor]:
        """An initial state for x, as a call without `init` draws it: the dict that `init` takes."""
        spec, params, _, autocast, x, _ = self._prepare(x)
        slots = spec.num_slots if num_slots is None else num_slots
        count("num_slots", slots)
        _check_masks(x, mask, slot_mask, slots)
        with torch.autocast(x.device.type, enabled=False) if autocast else contextlib.nullcontext():
            return self._draw(spec, params, x, mask, slot_mask, slots, generator)

    def _state(
        self,
        spec: Spec,
        init: dict[str, Tensor],
        x: Tensor,
        dtype: torch.dtype,
        num_slots: int | None,
    ) -> State:
        """(mean or slots, log_std, indices) of an `init` dict, checked."""
        if not isinstance(init, dict):
            raise TypeError(f"init must be a dict of tensors, got {type(init).__name__}")
        names = spec.state_names
        if set(init) not in ({*names}, {"indices", *names[1:]}):
            raise KeyError(
                f"init must hold {list(names)} or {['indices', *names[1:]]}, "
                f"got {sorted(map(str, init))}"
            )
        indices = init.get("indices")
        first = init.get(names[0]) if indices is None else indices
        if not isinstance(first, Tensor) or first.dim() != (3 if indices is None else 2):
            got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            wanted = "(B, K, D)" if indices is None else "(B, K)"
            raise ValueError(f"init must hold a tensor of shape {wanted}, got {got}")
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

    def _draw(
        self,
        spec: Spec,
        params: dict[str, Tensor],
        x: Tensor,
        mask: Tensor | None,
        slot_mask: Tensor | None,
        slots: int,
        generator: Generators | None,
    ) -> dict[str, Tensor]:
        shape = (x.shape[0], slots, spec.dim)
        if spec.bfloat16_inputs:
            x = x.to(DTYPES[spec.dtype])

        def normal() -> Tensor:
            return _random(torch.randn, shape, x.dtype, x.device, generator)

        init = {}
        first = spec.state_names[0]
        if spec.start == "inputs":
            init["indices"] = _draw_indices(x, mask, slot_mask, slots, generator)
        elif not spec.has_network:
            init[first] = normal()
        for name, (mu, logsigma) in spec.drawn_from.items():
            if name != first or spec.start != "inputs":
                mean, log_std = (_for_slots(n, params[n], slots, spec) for n in (mu, logsigma))
                init[name] = mean + log_std.exp() * normal()
        if spec.kind == "gaussian_mixture":
            init["log_std"] = _spread(x, mask, spec.var_floor).expand(shape).contiguous()
        return init


class _Network(_Twin):
    """Twins with learned weights."""

    seed: InitVar[int | None] = option(
        default=None,
        check=Check("int", lambda name, value: value),
        doc="Of the initial weights; PyTorch's generator (torch.manual_seed) if not given.",
    )


def _for_slots(name: str, value: Tensor, slots: int, spec: Spec) -> Tensor:
    """The parameter, if it is one for all slots or has a row for each."""
    own = tuple(value.shape)
    if len(own) == 2 and own[1] == spec.dim and own[0] != slots:
        raise ValueError(
            f"num_slots must be {own[0]}, as {name} has one row for each slot, got {slots}"
        )
    if own not in ((spec.dim,), (slots, spec.dim)):
        raise ValueError(f"{name} must have shape {(spec.dim,)} or {(slots, spec.dim)}, got {own}")
    return value


def _random(
    draw: Callable[..., Tensor],
    shape: Sequence[int],
    dtype: torch.dtype | None,
    device: torch.device,
    generator: Generators | None,
) -> Tensor:
    """draw(shape) on a device: from PyTorch's generator, a given one, or each image's own."""
    if generator is None:  # graphs of dynamic shapes take no generator, not even None
        return draw(shape, dtype=dtype, device=device)
    if isinstance(generator, Generator):
        return draw(shape, dtype=dtype, device=generator.device, generator=generator).to(device)
    _check_generator(generator, shape[0])
    return torch.stack(
        [draw(shape[1:], dtype=dtype, device=g.device, generator=g) for g in generator]
    ).to(device)


def _check_generator(generator: object, images: int) -> None:
    if isinstance(generator, Generator):
        return
    if not isinstance(generator, (list, tuple)) or not all(
        isinstance(g, Generator) for g in generator
    ):
        raise TypeError(
            "generator must be a torch.Generator, or a list of one for each image, "
            f"got {type(generator).__name__}"
        )
    if len(generator) != images:
        raise ValueError(
            f"generator must hold one for each of the {images} images, got {len(generator)}"
        )


def _autocasts(device_type: str) -> bool:
    """Whether autocast is on; there are devices without it, such as "meta"."""
    # graphs of old PyTorch cannot ask whether it is there
    there = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)
    return there and torch.is_autocast_enabled(device_type)


def _check_masks(
    x: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    slots: int,
    indices: Tensor | None = None,
) -> None:
    """Masks and indices; their contents are not checked in graphs or on the device "meta"."""
    looks = not torch.compiler.is_compiling() and x.device.type != "meta"
    for name, value, size, what in (
        ("mask", mask, x.shape[1], "a real input"),
        ("slot_mask", slot_mask, slots, "an active slot"),
    ):
        if value is None:
            continue
        _check(name, value, torch.bool, (x.shape[0], size), x.device)
        if looks and not value.any(1).all():
            image = int((~value.any(1)).nonzero()[0])
            raise ValueError(f"{name} must leave every image {what}, got none in image {image}")
    if indices is not None and looks:
        wrong = (indices < 0) | (indices >= x.shape[1])
        if mask is not None:
            wrong |= ~mask.gather(1, indices.clamp(0, x.shape[1] - 1))
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            raise_index(int(indices[at]), at, x.shape[1], mask is not None)


def _draw_indices(
    x: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    slots: int,
    generator: Generators | None,
) -> Tensor:
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


def _spread(x: Tensor, mask: Tensor | None, floor: float) -> Tensor:
    """Log standard deviation of each image's real inputs, (B, 1, D)."""
    weights = (
        torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
        if mask is None
        else mask.to(x.dtype)
    )
    weights = (weights / weights.sum(1, keepdim=True))[..., None]
    x = x if mask is None else torch.where(mask[..., None], x, 0)  # what is masked may be NaN
    mean = (weights * x).sum(1, keepdim=True)
    variance = (weights * (x - mean) ** 2).sum(1, keepdim=True)
    return 0.5 * torch.log(variance + floor).detach()


def _dtype_name(dtype: object) -> object:
    return str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype


class SlotAttention(SlotAttentionOptions, _Network):
    """Slot Attention (Locatello et al. 2020, Algorithm 1), as `smm_py.SlotAttention`.

    Examples
    --------
    >>> module = SlotAttention(dim=16, num_slots=3)
    >>> module(torch.zeros(2, 9, 16)).shape
    torch.Size([2, 3, 16])
    """


class SlotMixture(SlotMixtureOptions, _Network):
    """Slot Mixture Module (Kirilenko et al. 2024, Algorithm 1), as `smm_py.SlotMixture`.

    Examples
    --------
    >>> module = SlotMixture(dim=16, num_slots=3, start="inputs")
    >>> slots, attention = module(torch.randn(2, 50, 16), return_attention=True)
    >>> slots.shape, attention.shape
    (torch.Size([2, 3, 16]), torch.Size([2, 50, 3]))
    """


class KMeans(KMeansOptions, _Twin):
    """Differentiable soft K-Means, as `smm_py.KMeans`: no parameters, slots are the centres.

    Takes (B, N, dim). There is no seed: states are drawn from PyTorch's generators.
    """


class GaussianMixture(GaussianMixtureOptions, _Twin):
    """Differentiable EM for a diagonal Gaussian mixture, as `smm_py.GaussianMixture`.

    No parameters; slots are [mean, variance]. Takes (B, N, dim). There is no seed: states are drawn
    from PyTorch's generators.
    """
