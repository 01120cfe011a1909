"""The PyTorch twins of `smm_py`'s modules."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeVar, overload

import numpy as np
import torch
import torch.distributed
import torch.onnx
from torch import Generator, Tensor, nn

from .. import _files, _loading
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
from .._parameters import Parameters
from .._spec import Spec, initial_parameters, initial_state_names, parameter_shapes
from . import _ops
from .lean import (
    DTYPES,
    Formulas,
    Output,
    channel_variances,
    is_traced,
    least_variance,
    variance_floors,
)

Generators = Generator | Sequence[Generator]
# mean (or slots), log_std, prior, indices
State = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
_F = TypeVar("_F", bound=Callable[..., Any])
_force_lean = False


@contextlib.contextmanager
def force_lean() -> Iterator[None]:
    """Run CPU tensors in PyTorch operations too, as tensors on other devices.

    For checks, and for exporters that know no operators of ours (those to ONNX need not ask).
    """
    global _force_lean
    before, _force_lean = _force_lean, True
    try:
        yield
    finally:
        _force_lean = before


# what autocast passes from one layer to the next
AUTOCAST = (torch.float16, torch.bfloat16, torch.float32)


class _Arguments(NamedTuple):
    """A call's arguments, checked, with a batch axis; the spec and parameters it uses."""

    spec: Spec
    params: dict[str, Tensor]
    x: Tensor
    init: dict[str, Tensor] | None
    mask: Tensor | None
    slot_mask: Tensor | None
    single: bool  # they came without the batch axis
    autocast: bool

    def without_autocast(self) -> contextlib.AbstractContextManager[object]:
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.x.device.type, enabled=False)


class _WithZeros(torch.autograd.Function):
    """Slots that give parameters which they do not depend on a gradient of zeros.

    Wrappers such as DistributedDataParallel wait for the gradient of every parameter.
    """

    @staticmethod
    def forward(ctx: Any, slots: Tensor, *unused: Tensor) -> Tensor:
        ctx.save_for_backward(*unused)
        return slots.view_as(slots)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        return *grad_outputs, *map(torch.zeros_like, ctx.saved_tensors)


if TYPE_CHECKING:
    # what is decorated has the type of the function
    def _typed_as(function: _F) -> Callable[[Any], _F]: ...


def _first(results: Any) -> Any:
    """Those of the only image."""
    if isinstance(results, dict):
        return {name: _first(value) for name, value in results.items()}
    if isinstance(results, Output):
        return Output(*map(_first, results))
    return None if results is None else results[0]


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
        self._narrow: Spec | None = None  # under autocast to bfloat16, where the module follows it
        if spec.has_network and spec.precision is None and torch.float32 in self._specs:
            self._narrow = self._specs[torch.float32].but(precision="bfloat16")
        self._warned = False  # of gradients that do not reach `init`
        specs = [s for s in (*self._specs.values(), self._narrow) if s]
        self._configs = {other: _ops.config_text(other) for other in specs}
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
                if leaf not in there and leaf in vars(owner):
                    _run_hooks(owner, leaf)
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
        return self._summary()

    @overload
    def forward(
        self,
        x: Tensor,
        init: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        slot_mask: Tensor | None = None,
        num_iters: int | None = None,
        num_slots: int | None = None,
        generator: Generators | None = None,
        return_attention: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x: Tensor,
        init: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        slot_mask: Tensor | None = None,
        num_iters: int | None = None,
        num_slots: int | None = None,
        generator: Generators | None = None,
        *,
        return_attention: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self,
        x: Tensor,
        init: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        slot_mask: Tensor | None = None,
        num_iters: int | None = None,
        num_slots: int | None = None,
        generator: Generators | None = None,
        *,
        return_attention: bool,
    ) -> Tensor | tuple[Tensor, Tensor]: ...
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
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Slots of a batch.

        Parameters
        ----------
        x : (B, N, input_dim)
            Of the module's dtype, or bfloat16 with `bfloat16_inputs`. Under autocast float16,
            bfloat16 and float32 are converted to it, in `init` too. Modules without parameters take
            (N, input_dim) too, with other arguments and results without the batch axis.
        init : dict, optional
            "slots", or "mean" and "log_std", (B, K, D); or "indices" (B, K) int64, rows of h where
            the means start, with "log_std" for mixtures, which take "prior" (B, K) too, at least 0
            (uniform over the active slots if left out). The `state` that `run` returns goes on from
            there. Drawn if not given.
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
            argument. In compiled graphs the contents of masks, indices and priors are not checked:
            slots that find no input of their own share the first.

        Warns
        -----
        UserWarning
            Once, where an array of `init` requires a gradient that gradient="implicit" cannot give.
        """
        wanted = _ops.Wanted(attention=flag("return_attention", return_attention))
        found = self._run(x, init, mask, slot_mask, num_iters, num_slots, generator, wanted)
        return found.slots if found.attention is None else (found.slots, found.attention)

    if TYPE_CHECKING:  # nn.Module says nothing of what calls return

        @_typed_as(forward)
        def __call__(self, *args: Any, **kwargs: Any) -> Any: ...

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
        history: bool = False,
    ) -> Output:
        """As `forward`, with all outputs; those of every step too with history=True.

        Gradients flow through slots, mean, variance, prior, log_likelihood, attention and, but for
        the reference variant, state.
        """
        attention, history = flag("return_attention", return_attention), flag("history", history)
        wanted = _ops.Wanted(attention, every=True, history=history)
        return self._run(x, init, mask, slot_mask, num_iters, num_slots, generator, wanted)

    def _run(
        self,
        x: Tensor,
        init: dict[str, Tensor] | None,
        mask: Tensor | None,
        slot_mask: Tensor | None,
        num_iters: int | None,
        num_slots: int | None,
        generator: Generators | None,
        wanted: _ops.Wanted,
    ) -> Output:
        call = self._prepare(x, init, mask, slot_mask)
        spec, params, x, init, mask, slot_mask, single, _ = call
        iters = spec.num_iters if num_iters is None else num_iters
        count("num_iters", iters)
        with call.without_autocast():
            if init is None:
                slots = spec.num_slots if num_slots is None else num_slots
                count("num_slots", slots)
                _check_masks(x, mask, slot_mask, slots)
                init = self._draw(spec, params, x, mask, slot_mask, slots, generator)
                state = self._state(spec, init, x, num_slots)
            else:
                if num_slots is not None:
                    count("num_slots", num_slots)
                if generator is not None:
                    _check_generator(generator, x.shape[0])
                state = self._state(spec, init, x, num_slots)
                first = next(s for s in (state[3], state[0]) if s is not None)
                _check_masks(x, mask, slot_mask, first.shape[1], state[3])
                _check_prior(state[2], slot_mask)
                self._warn_of_zeros(spec, init)
            if self._uses_core(x):
                drawn = spec.drawn_names
                arrays = tuple(p for name, p in params.items() if name not in drawn)
                config = self._configs[spec]
                floors = variance_floors(spec, x, mask)
                inputs = _ops.Inputs(x, arrays, *state, mask, slot_mask, floors, config, iters)
                result = _output(spec, _ops.run(spec, inputs, wanted), wanted)
            else:
                formulas = (self.formulas or Formulas)(spec, x, params, mask)
                result = formulas.run(*state, slot_mask, iters, wanted.attention, wanted.history)
        result = self._with_zeros(result, spec, params)
        return _first(result) if single else result

    def _uses_core(self, x: Tensor) -> bool:
        lean = self.formulas is not None or _force_lean
        return not lean and x.device.type == "cpu" and not torch.onnx.is_in_onnx_export()

    def _with_zeros(self, result: Output, spec: Spec, params: dict[str, Tensor]) -> Output:
        """Gradients for what the state is drawn from, where `init` was given, in a process group.

        Elsewhere nobody waits for them, and optimizers leave alone what has none.
        """
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return result
        if not torch.is_grad_enabled():
            return result
        unused = [params[n] for n in spec.drawn_names if params[n].requires_grad]
        return result._replace(slots=_WithZeros.apply(result.slots, *unused)) if unused else result

    def _warn_of_zeros(self, spec: Spec, init: dict[str, Tensor]) -> None:
        """The gradient of a given state, asked for where there is none, is no silent zero."""
        if self._warned or spec.reaches_state or torch.compiler.is_compiling():
            return
        lost = [f"init[{name!r}]" for name, value in init.items() if value.requires_grad]
        if lost and torch.is_grad_enabled():
            self._warned = True
            warnings.warn(
                f'{" and ".join(lost)} requires a gradient, which is zero with gradient="implicit";'
                ' "full", "bilevel" and "straight-through" reach it',
                UserWarning,
                stacklevel=6,  # who called the module
            )

    def _prepare(
        self,
        x: Tensor,
        init: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        slot_mask: Tensor | None = None,
    ) -> _Arguments:
        params = self._named()
        autocast = isinstance(x, Tensor) and _autocasts(x.device.type)
        spec = self._spec_of(x, params, autocast)
        if autocast and self._narrow and spec.dtype == "float32":
            if torch.get_autocast_dtype(x.device.type) == torch.bfloat16:
                spec = self._narrow
        dtype = DTYPES[spec.dtype]
        of_x = torch.bfloat16 if spec.bfloat16_inputs else dtype
        of_inputs = self._spec.dtype is None  # the dtype is taken from x
        if isinstance(x, Tensor) and not x.dtype.is_complex:
            if (autocast and x.dtype in AUTOCAST) or (of_inputs and not spec.bfloat16_inputs):
                x = x.to(of_x)
        if (autocast or of_inputs) and isinstance(init, dict):
            allowed = AUTOCAST if autocast and not of_inputs else None
            init = {name: _converted(name, v, dtype, allowed) for name, v in init.items()}
        _check("x", x, of_x)
        single = x.dim() == 2 and not spec.has_network
        if x.dim() != 3 - single or x.shape[-1] != spec.input_dim:
            raise ValueError(f"x must have shape (B, N, {spec.input_dim}), got {tuple(x.shape)}")
        if x.shape[-2] == 0:
            raise ValueError(
                f"x must hold at least one input of each image, got shape {tuple(x.shape)}"
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
        if single:
            x, mask, slot_mask = x[None], _batched(mask, 1), _batched(slot_mask, 1)
            if isinstance(init, dict):
                ranks = {"indices": 1, "prior": 1}
                init = {name: _batched(v, ranks.get(name, 2)) for name, v in init.items()}
        return _Arguments(spec, params, x, init, mask, slot_mask, single, autocast)

    def _spec_of(self, x: Tensor, params: dict[str, Tensor], autocast: bool) -> Spec:
        """The Spec of a call: of the parameters' dtype, of the module's, or of x's."""
        spec = self._spec
        if not params and spec.dtype:
            return spec
        if params:
            dtype = next(iter(params.values())).dtype
        elif not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        elif x.dtype == torch.float32 or spec.bfloat16_inputs:
            dtype = torch.float32
        else:
            dtype = torch.float32 if autocast and x.dtype in AUTOCAST else torch.float64
        if dtype not in self._specs:
            allowed = " or ".join(str(d).removeprefix("torch.") for d in self._specs)
            what = "its parameters are" if params else "x is"
            raise TypeError(f"the module must be of {allowed}, {what} {dtype}")
        return self._specs[dtype]

    def initial_state(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        slot_mask: Tensor | None = None,
        num_slots: int | None = None,
        generator: Generators | None = None,
    ) -> dict[str, Tensor]:
        """An initial state for x, as a call without `init` draws it: the dict that `init` takes.

        Without gradients where none reach it (gradient="implicit").
        """
        call = self._prepare(x, None, mask, slot_mask)
        spec, params, x, _, mask, slot_mask, single, _ = call
        slots = spec.num_slots if num_slots is None else num_slots
        count("num_slots", slots)
        _check_masks(x, mask, slot_mask, slots)
        reached = torch.is_grad_enabled() and spec.reaches_state
        with call.without_autocast(), torch.set_grad_enabled(reached):
            init = self._draw(spec, params, x, mask, slot_mask, slots, generator)
            return _first(init) if single else init

    def _state(
        self, spec: Spec, init: dict[str, Tensor], x: Tensor, num_slots: int | None
    ) -> State:
        """An `init` dict, checked."""
        if not isinstance(init, dict):
            raise TypeError(f"init must be a dict of tensors, got {type(init).__name__}")
        names = spec.state_names
        if set(init) - set(spec.state[2:]) not in map(set, spec.state_forms):
            raise KeyError(
                f"init must hold {' or '.join(str(list(form)) for form in spec.state_forms)}, "
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
        for name, value in init.items():
            dtype = torch.int64 if name == "indices" else DTYPES[spec.dtype]
            shape = (batch, slots) if name in ("indices", "prior") else (batch, slots, spec.dim)
            _check(f"init[{name!r}]", value, dtype, shape, x.device)
        return init.get(names[0]), init.get("log_std"), init.get("prior"), indices

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
            floors = variance_floors(spec, x, mask)
            variance = channel_variances(x, mask) + (
                spec.var_floor or 0.0 if floors is None else floors
            )
            log_std = 0.5 * variance.clamp_min(least_variance(x.dtype)).log()
            init["log_std"] = log_std[:, None].expand(shape).contiguous()
        return init

    # -- files ---------------------------------------------------------------------------------

    def save(self, path: _files.FilePath) -> None:
        """Write parameters and options to a `.safetensors` file, as the NumPy modules do.

        Raises
        ------
        TypeError, ValueError
            If a parameter is what `load` would refuse, such as one of bfloat16 or with NaN.
        """
        values = {name: value.detach().cpu() for name, value in self._named().items()}
        dtype = next((value.dtype for value in values.values()), None)
        if dtype is not None and dtype not in self._specs:
            raise TypeError(f"parameters must be of float32 or float64 to be saved, got {dtype}")
        spec = self._specs[dtype] if dtype else self._spec
        table = Parameters(spec, {})
        arrays = {name: table.checked(name, value.numpy()) for name, value in values.items()}
        options = {**self.options, "dtype": spec.dtype}
        metadata = {"module": self._saved_name(), "options": json.dumps(options)}
        _files.write(path, arrays, metadata)

    @classmethod
    def load(cls, path: _files.FilePath, *, assume_defaults: bool = False, **options: Any) -> Self:
        """A module from a `.safetensors` file, on PyTorch's default device.

        Parameters
        ----------
        path : str or Path
            What `save` wrote, here or in NumPy; the `model.safetensors` of a pipeline's run, in
            which the module is found; or a `state_dict`, alone or of a model around it.
        assume_defaults : bool
            Options that neither the file nor its arrays' shapes nor the caller tell take their
            defaults. Else they are an error, as those of a `state_dict` could be others.
        **options
            The constructor's arguments, over those of the file. With a dtype, numbers of bfloat16
            and float16 files are widened to it.

        Raises
        ------
        KeyError, TypeError, ValueError
            Naming the file, if it is damaged, or of another module or other options.
        """
        found, arrays = _loading.read(
            path, cls._saved_name(), cls._kind, cls._rows, options, assume_defaults
        )
        module = cls._made(found)
        table = Parameters(module._spec, {})
        try:
            values = {name: table.checked(name, array) for name, array in arrays.items()}
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error.args[0]}") from error
        nn.Module.load_state_dict(module, {n: torch.from_numpy(a) for n, a in values.items()})
        return module

    @classmethod
    def _made(cls, options: dict[str, Any]) -> Self:
        """A module of such options; its initial weights draw nothing from PyTorch's generator."""
        seed: dict[str, Any] = {"seed": 0} if "seed" in cls._rows else {}
        return cls(**seed | options)

    @classmethod
    def _saved_name(cls) -> str:
        """Of the class of this package that it is or derives from, as in NumPy."""
        return next(c.__name__ for c in cls.__mro__ if c.__module__ == __name__)


class _Network(_Twin):
    """Twins with learned weights."""

    seed: InitVar[int | None] = option(
        default=None,
        check=Check("int", lambda name, value: value),
        doc="Of the initial weights; PyTorch's generator (torch.manual_seed) if not given.",
    )


def _run_hooks(owner: nn.Module, leaf: str) -> None:
    """Compute a weight that pruning or the old weight_norm and spectral_norm have put in the place
    of a parameter: by a hook before the call of its submodule, which nobody calls here."""
    for hook in owner._forward_pre_hooks.values():
        if leaf in (getattr(hook, "_tensor_name", None), getattr(hook, "name", None)):
            hook(owner, ())


def _converted(
    name: str, value: Any, dtype: torch.dtype, allowed: Sequence[torch.dtype] | None
) -> Any:
    """An array of `init` as of that dtype, if it is real and of an allowed dtype (None: of any)."""
    if name == "indices" or not isinstance(value, Tensor) or value.dtype.is_complex:
        return value
    return value.to(dtype) if allowed is None or value.dtype in allowed else value


def _batched(value: Any, rank: int) -> Any:
    """With a batch axis, if it is a tensor of the rank of one image's."""
    return value[None] if isinstance(value, Tensor) and value.dim() == rank else value


def _output(spec: Spec, found: dict[str, Tensor], wanted: _ops.Wanted) -> Output:
    """The core's results by the names of an Output."""
    state: dict[str, Tensor] | None = None
    history: dict[str, Tensor] | None = None
    if wanted.every and spec.is_mixture:
        own = {n: found.pop(f"state_{n}", None) for n in spec.state}
        state = {n: found[n] if a is None else a for n, a in own.items()}
    elif wanted.every:
        state = {"slots": found["slots"]}
    if wanted.history:
        names = [name for name in found if name.startswith("step_")]
        history = {name.removeprefix("step_"): found.pop(name) for name in names}
    return Output(**found, state=state, history=history)


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
    if not generator:
        return torch.empty(shape, dtype=dtype, device=device)
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


def _looks(x: Tensor) -> bool:
    """Whether contents are checked: not where a graph is made, whose checks would see one call."""
    return not is_traced() and x.device.type != "meta"


def _check_prior(prior: Tensor | None, slot_mask: Tensor | None) -> None:
    """A given prior; NaN passes."""
    if prior is None or not _looks(prior):
        return
    if (prior < 0).any():
        at = tuple((prior < 0).nonzero()[0].tolist())
        raise ValueError(f"init['prior'] must be at least 0, got {float(prior[at])} at index {at}")
    empty = prior == 0 if slot_mask is None else (prior == 0) | ~slot_mask
    if empty.all(1).any():
        raise ValueError(
            "init['prior'] must be above 0 for an active slot of every image, got none in image "
            f"{int(empty.all(1).nonzero()[0])}"
        )


def _check_masks(
    x: Tensor,
    mask: Tensor | None,
    slot_mask: Tensor | None,
    slots: int,
    indices: Tensor | None = None,
) -> None:
    """Masks and indices; their contents are not checked in graphs or on the device "meta"."""
    looks = _looks(x)
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
    if _looks(x):
        short = ~real if slot_mask is None else ~real & slot_mask
        if short.any():
            image = int(short.any(1).nonzero()[0])
            raise ValueError(
                "num_slots must not exceed the real inputs that means start at: too few in "
                f"image {image}"
            )
    return torch.where(real, drawn, indices[:, :1])


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
