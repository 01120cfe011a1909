"""The NumPy modules."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any, TypeVar

import numpy as np

from . import _core, _files, _loading
from ._arrays import (
    Array,
    MaybeNone,
    check_array,
    check_finite,
    check_indices,
    check_mask,
    check_prior,
    check_seed,
    first_nonfinite,
    plain,
    real_array,
    shaped,
)
from ._draw import draw, draw_gradients, variance_floors
from ._options import (
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
from ._parameters import Parameters
from ._spec import Spec, initial_parameters


@dataclass(frozen=True, repr=False)
class Output:
    """What a call returns: B images, N inputs, K slots, D slot width, in the module's dtype.

    It holds the call's arrays and parameters without copying them: between a call and its
    `backward` change neither `x`, `init` and masks in place nor a parameter's array; assign new
    ones.

    Attributes
    ----------
    slots : (B, K, D)
        Or (B, K, 2D) with [mean, variance] where a mixture is not reduced.
    mean : (B, K, D) or None
        Mixtures only.
    variance : (B, K, D) or None
        Mixtures only.
    prior : (B, K) or None
        Mixtures only.
    log_likelihood : (B,) or None
        Sum over inputs of the log density at the last E step; not of the reference variant.
    attention : (B, N, K) or None
        Responsibilities of the last step, where the call asked for them.
    iterations : (B,) int64
        Steps done: num_iters, or fewer with `tol`.
    state : dict
        The state that the call led to, as `init` takes it to go on: {"slots"}, or {"mean",
        "log_std", "prior"}. The reference variant's is the one before its extra step.
    history : dict or None
        Of every step, where the call asked for it: "movement" (B, T), the largest movement of an
        image's slots (root mean square over channels of the mean), and of mixtures "prior"
        (B, T, K) and, but for the reference variant, "log_likelihood" (B, T). After the last step
        of an image that stopped early, the latter two repeat and the movement is 0.
    """

    slots: Array
    mean: Array | MaybeNone
    variance: Array | MaybeNone
    prior: Array | MaybeNone
    log_likelihood: Array | MaybeNone
    attention: Array | MaybeNone
    iterations: Array
    state: dict[str, Array]
    history: dict[str, Array] | MaybeNone
    _call: dict[str, Any] = field(repr=False, compare=False)

    def __repr__(self) -> str:
        shown = ((name, getattr(self, name)) for name in (*_GRADED, "iterations"))
        parts = (f"{n}={a.dtype}{list(a.shape)}" for n, a in shown if a is not None)
        return f"Output({', '.join(parts)})"


# the outputs that carry a gradient
_GRADED = ("slots", "mean", "variance", "prior", "log_likelihood", "attention")
_M = TypeVar("_M", bound="Module")


def _first(results: Any) -> Any:
    """Those of the only image."""
    if isinstance(results, dict):
        return {name: _first(value) for name, value in results.items()}
    return None if results is None else results[0]


class Module(Options):
    """What the modules share: everything but their options."""

    dtype: DType = option(default="float32")
    seed: InitVar[int] = option(
        default=0,
        check=Check("int", lambda name, value: check_seed(value)),
        doc="Of the initial weights and of the states drawn without a seed of their own.",
    )
    _kind = ""

    def _build(self, seed: int = 0, **options: Any) -> None:
        self._spec = Spec(self._kind, **options)
        seed = check_seed(seed)
        self._rng = np.random.default_rng([seed, 1])
        self._parameters = Parameters(
            self._spec, initial_parameters(self._spec, np.random.default_rng([seed, 0]))
        )

    @property
    def parameters(self) -> Parameters:
        """Name -> array of every learned parameter; assign to load."""
        return self._parameters

    @parameters.setter
    def parameters(self, values: Mapping[str, Array]) -> None:
        if not isinstance(values, Mapping):
            raise TypeError(f"parameters must be a dict of arrays, got {type(values).__name__}")
        missing = [name for name in self._parameters if name not in values]
        if missing:
            raise KeyError(f"parameters must hold every name, missing: {', '.join(missing)}")
        new = {name: self._parameters.checked(name, value) for name, value in values.items()}
        self._parameters = Parameters(self._spec, new)

    @property
    def slot_dim(self) -> int:
        """Width of a slot in the output: `dim`, or 2 `dim` for [mean, variance]."""
        return self._spec.slot_dim

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._summary()})"

    # -- calls ---------------------------------------------------------------------------------

    def __call__(
        self,
        x: Array,
        init: Mapping[str, Array] | None = None,
        mask: Array | None = None,
        slot_mask: Array | None = None,
        num_iters: int | None = None,
        num_slots: int | None = None,
        seed: int | None = None,
        attention: bool = False,
        history: bool = False,
        grad: bool = True,
    ) -> Output:
        """Slots of a batch.

        Parameters
        ----------
        x : (B, N, input_dim) array
            Of the module's dtype (see also `bfloat16_inputs`), finite; any strides, never modified.
        init : dict, optional
            The initial state: "slots" (B, K, D), or "mean" and "log_std"; or "indices" (B, K)
            int64, rows of h where the means start (distinct or not), with "log_std" for mixtures,
            which take "prior" (B, K) too, at least 0 (uniform over the active slots if left out).
            `out.state` of another call goes on from there. Drawn as `start` says if not given.
        mask : (B, N) bool array, optional
            True where an input is real.
        slot_mask : (B, K) bool array, optional
            True where a slot is active.
        num_iters : int, optional
            In place of the module's own, for this call.
        num_slots : int, optional
            In place of the module's own, for this call.
        seed : int, optional
            Fixes the drawn state; else the module's generator goes on.
        attention : bool
            Return the responsibilities (B, N, K) too.
        history : bool
            Return what every step found too.
        grad : bool
            False: save nothing for `backward`, which then refuses the result.

        Returns
        -------
        Output

        Raises
        ------
        TypeError, ValueError, KeyError
            For a wrong type, dtype, shape or value, or wrong names in `init`, naming the argument.
        """
        rng = self._rng if seed is None else np.random.default_rng(check_seed(seed))
        spec, x = self._check_x(x)
        single = x.ndim == 2
        x = x[None] if single else x
        batch, inputs = x.shape[:2]
        mask = check_mask("mask", mask, (batch, inputs), single)
        iters = count("num_iters", spec.num_iters if num_iters is None else num_iters)
        asked: Any = {"attention": attention, "history": history, "save": grad}
        for name, value in (("attention", attention), ("history", history), ("grad", grad)):
            flag(name, value)
        slots = self._count_slots(init, num_slots, single)
        slot_mask = check_mask("slot_mask", slot_mask, (batch, slots), single)
        floors = variance_floors(spec, x, mask)
        if init is None:
            state, noise = draw(spec, self._parameters, x, mask, slot_mask, slots, rng, floors)
        else:
            state, noise = self._check_init(spec, init, batch, slots, single), {}
            if "indices" in state:
                check_indices(state["indices"], mask, inputs)
            if "prior" in state:
                check_prior(state["prior"], slot_mask)
        arguments: dict[str, Any] = {
            "x": plain(x),
            "params": self._parameters.of_core(),
            "num_iters": iters,
            "mean": state.get(spec.state_names[0]),
            "log_std": state.get("log_std"),
            "prior": state.get("prior"),
            "indices": state.get("indices"),
            "mask": mask,
            "slot_mask": slot_mask,
            "var_floor": floors,
        }
        found = _core.forward(spec.config, **arguments, state=True, **asked)
        results: dict[str, Any] = {n: getattr(found, n) for n in (*_GRADED, "iterations")}
        self._check_results(spec, results)
        results["state"] = self._state(found)
        results["history"] = self._history(found) if history else None
        call = {
            "module": self._spec,
            "spec": spec,
            "arguments": arguments,
            "saved": found.saved,
            "noise": noise,
            "drawn": self._parameters.of_draw(),
            "single": single,
        }
        return Output(**(_first(results) if single else results), _call=call)

    def backward(
        self,
        out: Output,
        d_slots: Array | None = None,
        d_mean: Array | None = None,
        d_variance: Array | None = None,
        d_prior: Array | None = None,
        d_log_likelihood: Array | None = None,
        d_attention: Array | None = None,
    ) -> dict[str, Array]:
        """Gradients of the sum of outputs times d_outputs, of which at least one is given.

        Parameters
        ----------
        out : Output
            What a call of this module returned.
        d_slots : array, optional
            Of the shape and dtype of out.slots; so the others of theirs.
        d_mean : array, optional
            Mixtures only.
        d_variance : array, optional
            Mixtures only.
        d_prior : array, optional
            Mixtures only.
        d_log_likelihood : array, optional
            Mixtures only; not of the reference variant.
        d_attention : (B, N, K) array, optional
            Whether the call asked for the attention or not. Masked inputs get nothing from it.

        Returns
        -------
        dict
            Every parameter's name, "x", and the initial state's arrays ("slots", or "mean" and
            "log_std", and "prior" where it was given). Where the state was drawn, the parameters it
            was drawn from get their gradient through it; where it was given, zeros. With
            `gradient="implicit"` the initial state gets zeros (only the last step is
            differentiated); with "straight-through" it gets the final state's gradient, with
            "bilevel" that of the state before the last step.
        """
        if not isinstance(out, Output):
            raise TypeError(f"out must be an Output of this module, got {type(out).__name__}")
        call = out._call
        spec, single, arguments = call["spec"], call["single"], call["arguments"]
        if call["module"] != self._spec:
            raise ValueError(
                "out must be of a call of this module, got one of a module with other options"
            )
        if call["saved"] is None:
            raise ValueError(
                "out must be of a call with grad=True, got one with grad=False, which saves "
                "nothing for gradients"
            )
        given = (d_slots, d_mean, d_variance, d_prior, d_log_likelihood, d_attention)
        batch, inputs = arguments["x"].shape[:2]
        slots = out.slots.shape[-2]
        shapes = {name: getattr(out, name) for name in _GRADED[:-1]}
        shapes = {name: None if a is None else a.shape for name, a in shapes.items()}
        shapes["attention"] = (inputs, slots) if single else (batch, inputs, slots)
        d: Any = {f"d_{n}": self._check_d(spec, n, a, shapes[n]) for n, a in zip(_GRADED, given)}
        if all(a is None for a in given):
            raise TypeError(f"backward needs at least one of {', '.join(d)}, got none")
        d = {n: a[None] if single and a is not None else a for n, a in d.items()}
        found = _core.backward(spec.config, **arguments, saved=call["saved"], **d)
        state: dict[str, Any] = dict(zip(spec.state_names, (found.mean, found.log_std)))
        grads = dict(zip(self._parameters.core_names, found.params))
        grads.update(draw_gradients(spec, call["drawn"], call["noise"], state))
        if found.mean is None:
            state[spec.state_names[0]] = np.zeros((batch, slots, spec.dim), spec.dtype)
        if found.prior is not None:
            state["prior"] = found.prior
        of_call = {"x": found.x, **state}
        grads.update(_first(of_call) if single else of_call)
        for name, value in grads.items():
            if first_nonfinite(value) is not None:
                raise ValueError(
                    f"the gradient of {name} is not finite: the numbers are too large "
                    f"for {spec.dtype}"
                )
        return grads

    def _state(self, found: _core.Outputs) -> dict[str, Any]:
        if not self._spec.is_mixture:
            return {"slots": found.slots}
        if self._spec.is_reference:
            mean, prior = found.state_mean, found.state_prior
        else:
            mean, prior = found.mean, found.prior
        return {"mean": mean, "log_std": found.state_log_std, "prior": prior}

    def _history(self, found: _core.Outputs) -> dict[str, Any]:
        steps = {n: getattr(found, f"step_{n}") for n in ("log_likelihood", "prior", "movement")}
        return {name: array for name, array in steps.items() if array is not None}

    # -- checks --------------------------------------------------------------------------------

    def _check_x(self, x: Any) -> tuple[Spec, Array]:
        """The Spec of a call, and x (B, N, I), or (N, I) where the kind takes that."""
        spec = self._spec
        if spec.dtype is None and not spec.bfloat16_inputs:
            x = real_array("x", x)
            spec = spec.of("float32" if x.dtype == np.float32 else "float64")
        spec = spec.of("float32")
        if spec.bfloat16_inputs and getattr(getattr(x, "dtype", None), "name", "") == "bfloat16":
            x = x.view(np.dtype(np.uint16).newbyteorder(x.dtype.byteorder))
        check_array("x", x, "uint16" if spec.bfloat16_inputs else spec.dtype)
        ranks = (3,) if spec.has_network else (2, 3)
        if x.ndim not in ranks or x.shape[-1] != spec.input_dim:
            raise ValueError(f"x must have shape (B, N, {spec.input_dim}), got {x.shape}")
        if x.shape[-2] == 0:
            raise ValueError(f"x must hold at least one input of each image, got shape {x.shape}")
        check_finite("x", x)
        return spec, x

    def _real(self, name: str, value: Any, spec: Spec) -> Any:
        """Where the module takes its dtype from the inputs, other real numbers as of that dtype."""
        return real_array(name, value).astype(spec.dtype) if self._spec.dtype is None else value

    def _check_d(self, spec: Spec, name: str, value: Any, shape: Any) -> Array | None:
        if value is None:
            return None
        if shape is None:
            raise ValueError(f"d_{name} must be None: this module has no {name}")
        value = self._real(f"d_{name}", value, spec)
        check_array(f"d_{name}", value, spec.dtype)
        if value.shape != shape:
            raise ValueError(f"d_{name} must have shape {shape}, got {value.shape}")
        check_finite(f"d_{name}", value)
        return plain(value)

    def _count_slots(
        self, init: Mapping[str, Array] | None, num_slots: int | None, single: bool
    ) -> int:
        if num_slots is not None:
            num_slots = count("num_slots", num_slots)
        if init is None:
            return self._spec.num_slots if num_slots is None else num_slots
        if not isinstance(init, Mapping):
            raise TypeError(f"init must be a dict of arrays, got {type(init).__name__}")
        spec = self._spec
        names = spec.state_names
        if set(init) - set(spec.state[2:]) not in map(set, spec.state_forms):
            raise KeyError(
                f"init must hold {' or '.join(str(sorted(w)) for w in spec.state_forms)}, "
                f"got {sorted(map(str, init))}"
            )
        name = "indices" if "indices" in init else names[0]
        rank = 2 if name == "indices" else 3
        if not isinstance(init[name], np.ndarray):
            raise TypeError(f"init[{name!r}] must be an array, got {type(init[name]).__name__}")
        shape = init[name].shape
        if len(shape) not in (rank, rank - single) or 0 in shape[-(rank - 1) :]:
            raise ValueError(
                f"init[{name!r}] must have {rank} dimensions, none empty, got shape {shape}"
            )
        slots: int = shape[-1] if name == "indices" else shape[-2]
        if num_slots is not None and num_slots != slots:
            raise ValueError(
                f"num_slots must agree with init, which has {slots} slots, got {num_slots}"
            )
        return slots

    def _check_init(
        self, spec: Spec, init: Mapping[str, Array], batch: int, slots: int, single: bool
    ) -> dict[str, Array]:
        state = {}
        for name, value in init.items():
            indices = name == "indices"
            value = value if indices else self._real(f"init[{name!r}]", value, spec)
            check_array(f"init[{name!r}]", value, "int64" if indices else spec.dtype)
            shape: tuple[int, ...] = (batch, slots)
            if name not in ("indices", "prior"):
                shape = (*shape, spec.dim)
            value = shaped(f"init[{name!r}]", value, shape, single)
            if not indices:
                check_finite(f"init[{name!r}]", value)
            state[name] = plain(value)
        return state

    def _check_results(self, spec: Spec, results: Mapping[str, Array | None]) -> None:
        for name in ("slots", "mean", "variance", "prior", "log_likelihood"):
            value = results[name]
            if value is not None and first_nonfinite(value) is not None:
                raise ValueError(
                    f"{name} of the output is not finite: x, init, the options or the parameters "
                    f"hold numbers too large for {spec.dtype}"
                )

    # -- files ---------------------------------------------------------------------------------

    def save(self, path: _files.FilePath) -> None:
        """Write parameters and options to a `.safetensors` file, completely or not at all.

        Raises
        ------
        ValueError
            If a parameter was changed in place to what `load` would refuse, such as NaN.
        """
        arrays = {n: self._parameters.checked(n, value) for n, value in self._parameters.items()}
        metadata = {"module": type(self).__name__, "options": json.dumps(self.options)}
        _files.write(path, arrays, metadata)

    @classmethod
    def load(
        cls: type[_M], path: _files.FilePath, *, assume_defaults: bool = False, **options: Any
    ) -> _M:
        """A module from a `.safetensors` file.

        Parameters
        ----------
        path : str or Path
            What `save` wrote, here or in PyTorch; the `model.safetensors` of a pipeline's run, in
            which the module is found; or a PyTorch `state_dict`, alone or of a model around it.
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
            path, cls.__name__, cls._kind, cls._rows, options, assume_defaults
        )
        module = cls(**found)
        try:
            module.parameters = arrays
        except (KeyError, TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error.args[0]}") from error
        return module

    def __deepcopy__(self: _M, memo: dict[int, Any]) -> _M:
        new = memo[id(self)] = copy.copy(self)
        for name, value in vars(self).items():  # what a subclass has too
            if name not in ("_spec", "_parameters"):
                setattr(new, name, copy.deepcopy(value, memo))
        new._parameters = Parameters(self._spec, {n: v.copy() for n, v in self._parameters.items()})
        return new


class SlotAttention(SlotAttentionOptions, Module):
    """Slot Attention (Locatello et al. 2020, Algorithm 1).

    Examples
    --------
    >>> import numpy as np, smm_py
    >>> module = smm_py.SlotAttention(dim=16, num_slots=3)
    >>> out = module(np.zeros((2, 9, 16), "float32"), seed=0, attention=True)
    >>> out
    Output(slots=float32[2, 3, 16], attention=float32[2, 9, 3], iterations=int64[2])
    """


class SlotMixture(SlotMixtureOptions, Module):
    """Slot Mixture Module (Kirilenko et al. 2024, Algorithm 1), or the code its authors released.

    Examples
    --------
    >>> import numpy as np, smm_py
    >>> module = smm_py.SlotMixture(dim=16, num_slots=3)
    >>> out = module(np.random.default_rng(0).normal(size=(2, 50, 16)).astype("float32"), seed=0)
    >>> out.mean.shape, bool((out.variance > 0).all())
    ((2, 3, 16), True)
    """


class KMeans(KMeansOptions, Module):
    """Differentiable soft K-Means: no parameters, slots are the centres.

    Responsibilities are softmax over slots of `-|x - s|^2 scale`. Works on (B, N, dim) and on one
    (N, dim) array, whose results have no batch axis.

    Examples
    --------
    >>> import numpy as np, smm_py
    >>> x = np.concatenate([np.zeros((50, 2)), np.ones((50, 2))])
    >>> module = smm_py.KMeans(dim=2, num_slots=2, num_iters=10, scale=50., dtype="float64")
    >>> centres = module(x, seed=1).slots
    >>> np.sort(centres[:, 0].round(3)).tolist()
    [0.0, 1.0]
    """


class GaussianMixture(GaussianMixtureOptions, Module):
    """Differentiable EM for a Gaussian mixture with diagonal covariances: no parameters.

    Slots are [mean, variance], (B, K, 2 dim). Works on (B, N, dim) and on one (N, dim) array, whose
    results have no batch axis. Variances start at the data's where no `init` is given.

    Examples
    --------
    >>> import numpy as np, smm_py
    >>> x = np.random.default_rng(0).normal(size=(100, 2)) + np.repeat([[0., 0.], [9., 9.]], 50, 0)
    >>> out = smm_py.GaussianMixture(dim=2, num_slots=2, num_iters=10, dtype="float64")(x, seed=0)
    >>> out.mean.shape, float(out.prior.sum().round(6))
    ((2, 2), 1.0)
    """
