"""The NumPy modules: options, parameters, initial states, and calls of the core."""

from __future__ import annotations

import copy
import difflib
import functools
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from . import _core, _files
from ._spec import GRADIENTS, Spec, count, initial_parameters, initial_state_names, parameter_shapes

_KIND_CODES = {"slot_attention": 0, "slot_mixture": 1, "kmeans": 3, "gaussian_mixture": 4}
_REFERENCE = 2


@functools.lru_cache(maxsize=256)
def core_config(spec: Spec) -> "_core.Config":
    """The core's form of a Spec."""
    return _core.Config(
        kind=_REFERENCE if spec.is_reference else _KIND_CODES[spec.kind],
        gradient=GRADIENTS.index(spec.gradient),
        dim=spec.dim,
        input_dim=spec.input_dim,
        hidden_dim=spec.hidden_dim,
        heads=spec.heads,
        qkv_bias=spec.qkv_bias,
        input_mlp=spec.input_mlp,
        norm_kv=spec.norm_kv,
        slot_norm=spec.slot_norm,
        uniform_prior=spec.prior == "uniform",
        reduce=spec.reduce,
        recompute=spec.recompute,
        temperature=spec.temperature,
        scale=spec.scale,
        eps=spec.eps,
        tol=spec.tol,
        double_precision=spec.dtype == "float64",
        bfloat16_inputs=spec.bfloat16_inputs,
    )


def show_config() -> None:
    """Print the version, the instruction sets built and chosen, OpenMP and the number of threads."""
    chosen, sets, openmp = _core.simd()
    built = ", ".join(
        name if there else f"{name} (not on this machine)" for name, there in sets.items()
    )
    print(
        f"smm_py {_core.__version__}\n"
        f"instruction sets: {built}; chosen: {chosen}\n"
        f"OpenMP: {'yes' if openmp else 'no'}\nthreads: {_core.get_num_threads()}"
    )


@dataclass(frozen=True, repr=False)
class Output:
    """What a call returns; B images, N inputs, K slots, D slot width, in the module's dtype.

    Attributes
    ----------
    slots : (B, K, D), or (B, K, 2D) with [mean, variance] where a mixture is not reduced.
    mean, variance : (B, K, D), mixtures only, else None.
    prior : (B, K), mixtures only.
    log_likelihood : (B,), sum over inputs of the log density at the last E step; mixtures but for
        the reference variant.
    attention : (B, N, K) where the call asked for it: the last step's responsibilities.
    iterations : (B,) int64, steps done: num_iters, or fewer with `tol`.

    The output holds on to the call's arrays and parameters without copying them: between a call and its `backward`
    change neither `x`, `init` and masks in place nor a parameter's array; assign new ones.
    """

    slots: np.ndarray
    mean: np.ndarray | None
    variance: np.ndarray | None
    prior: np.ndarray | None
    log_likelihood: np.ndarray | None
    attention: np.ndarray | None
    iterations: np.ndarray
    _call: dict[str, Any] = field(repr=False, compare=False)

    def __repr__(self):
        shown = ((f.name, getattr(self, f.name)) for f in fields(self) if f.name != "_call")
        return (
            "Output("
            + ", ".join(f"{n}={a.dtype}{list(a.shape)}" for n, a in shown if a is not None)
            + ")"
        )


_RESULTS = ("slots", "mean", "variance", "prior", "log_likelihood", "attention", "iterations")


class Parameters(MutableMapping):
    """Name -> array. Assigning checks name, dtype, shape and values; nothing is cast."""

    def __init__(self, spec: Spec, values: Mapping[str, np.ndarray]):
        self._spec = spec
        self._shapes = parameter_shapes(spec)
        self._values = dict(values)
        self._drawn_names = initial_state_names(spec)
        self.core_names = [name for name in self._shapes if name not in self._drawn_names]

    def __getitem__(self, name):
        self._known(name)
        return self._values[name]

    def __setitem__(self, name, value):
        self._values[name] = self.checked(name, value)

    def update(self, other=(), /, **more):
        """Assign several: all of them, or none where one is refused."""
        values = {name: self.checked(name, value) for name, value in dict(other, **more).items()}
        self._values.update(values)

    def __delitem__(self, name):
        raise TypeError(f"parameter {name!r} cannot be removed, only assigned")

    def __iter__(self):
        return iter(self._shapes)

    def __len__(self):
        return len(self._shapes)

    def __repr__(self):
        return "{" + ", ".join(f"{n!r}: {list(v.shape)}" for n, v in self.items()) + "}"

    def of_core(self):
        """What the core takes, in its order."""
        return tuple(map(self._values.__getitem__, self.core_names))

    def of_draw(self):
        """What the initial state is drawn from."""
        return {name: self._values[name] for name in self._drawn_names}

    def _known(self, name):
        if name not in self._shapes:
            near = difflib.get_close_matches(str(name), self._shapes, 3)
            hint = (
                f"did you mean {' or '.join(near)}?"
                if near
                else f"there are {', '.join(self._shapes)}"
            )
            raise KeyError(f"no parameter {name!r} in this module; {hint}")

    def checked(self, name, value) -> np.ndarray:
        """A copy of `value` if it may be this parameter's, else an error."""
        self._known(name)
        _check_array(name, value, self._spec.dtype)
        shapes = [self._shapes[name]]
        if name in self._drawn_names:  # one for all slots, or one for each
            shapes.append((self._spec.num_slots, self._spec.dim))
        if value.shape not in shapes:
            raise ValueError(
                f"{name} must have shape {' or '.join(map(str, shapes))}, got {value.shape}"
            )
        _check_finite(name, value)
        return np.array(value, order="C")


def _check_array(name, value, dtype):
    if not isinstance(value, np.ndarray) or isinstance(
        value, np.ma.MaskedArray
    ):  # its mask would be lost
        raise TypeError(f"{name} must be a {dtype} array, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must be a {dtype} array, got an array of {value.dtype}")


def _shaped(name, value, shape, single):
    """The array, which has the shape, or lacks its first dimension where a single image is given."""
    if value.shape != shape and not (single and value.shape == shape[1:]):
        raise ValueError(
            f"{name} must have shape {shape[1:] if single else shape}, got {value.shape}"
        )
    return value.reshape(shape)


def _plain(value):
    """The array as the core reads it, C-contiguous and aligned; a copy where it is not."""
    return value if value.flags.c_contiguous and value.flags.aligned else np.array(value, order="C")


def _first_nonfinite(value):
    """Index of the first infinity or NaN of an array, or None."""
    at = _core.first_nonfinite(_plain(value))
    return None if at < 0 else tuple(map(int, np.unravel_index(at, value.shape)))


def _check_finite(name, value):
    at = _first_nonfinite(value)
    if at is not None:
        shown = from_bfloat16(np.array(value[at])) if value.dtype == np.uint16 else value[at]
        raise ValueError(f"{name} must be finite, got {shown} at index {at}")


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The bfloat16 numbers nearest to a float32 array's (ties to even), as a uint16 array of the same shape.

    bfloat16 is the upper half of a float32. For modules with `bfloat16_inputs`.
    """
    _check_array("x", x, "float32")
    bits = _plain(x).view(np.uint32)
    nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(x), 0x7FC0, nearest).astype(np.uint16)


def from_bfloat16(x: np.ndarray) -> np.ndarray:
    """The float32 array that a uint16 array holds as bfloat16."""
    _check_array("x", x, "uint16")
    return (x.astype(np.uint32) << 16).view(np.float32)


def _check_indices(indices, mask, inputs):
    wrong = (indices < 0) | (indices >= inputs)
    if mask is not None:
        wrong |= ~np.take_along_axis(mask, indices.clip(0, inputs - 1), axis=1)
    if wrong.any():
        at = tuple(map(int, np.argwhere(wrong)[0]))
        raise ValueError(
            f"init['indices'] must be rows of real inputs, from 0 to {inputs - 1}"
            f"{'' if mask is None else ' and not masked'}, got {indices[at]} at index {at}"
        )


def _check_seed(seed):
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an int, got {seed!r} ({type(seed).__name__})")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")


class _Module:
    """What the modules share: everything but their options."""

    _OPTIONS: tuple[str, ...]

    def __init__(self, spec: Spec, seed: int):
        _check_seed(seed)
        self._spec = spec
        self._rng = np.random.default_rng([int(seed), 1])
        self._parameters = Parameters(
            spec, initial_parameters(spec, np.random.default_rng([int(seed), 0]))
        )

    @property
    def parameters(self) -> Parameters:
        """Name -> array of every learned parameter; assign to load."""
        return self._parameters

    @parameters.setter
    def parameters(self, values: Mapping[str, np.ndarray]):
        if not isinstance(values, Mapping):
            raise TypeError(f"parameters must be a dict of arrays, got {type(values).__name__}")
        missing = [name for name in self._parameters if name not in values]
        if missing:
            raise KeyError(f"parameters must hold every name, missing: {', '.join(missing)}")
        new = {name: self._parameters.checked(name, value) for name, value in values.items()}
        self._parameters = Parameters(self._spec, new)

    @property
    def slot_dim(self) -> int:
        """Width of a slot in the output: `dim`, or twice that where mean and variance stand side by side."""
        return self._spec.slot_dim

    def __repr__(self):
        return (
            f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self._options().items())})"
        )

    def _options(self) -> dict[str, Any]:
        values = asdict(self._spec)
        return {name: values[name] for name in self._OPTIONS}

    # -- calls ---------------------------------------------------------------------------------

    def __call__(
        self,
        x,
        init=None,
        mask=None,
        slot_mask=None,
        num_iters=None,
        num_slots=None,
        seed=None,
        attention=False,
        grad=True,
    ) -> Output:
        """Slots of a batch.

        Parameters
        ----------
        x : (B, N, input_dim) array of the module's dtype (see also `bfloat16_inputs`), finite; any strides,
            never modified.
        init : dict, optional
            The initial state: "slots" (B,K,D), or "mean" and "log_std"; or "indices" (B,K) int64,
            rows of h where the means start (distinct or not), with "log_std" for mixtures. Drawn
            as `start` says if not given.
        mask : (B, N) bool, optional. True where an input is real.
        slot_mask : (B, K) bool, optional. True where a slot is active.
        num_iters, num_slots : int, optional. In place of the module's own, for this call.
        seed : int, optional. Fixes the drawn state; else the module's generator goes on.
        attention : bool. Return the responsibilities (B, N, K) too.
        grad : bool. False: keep nothing for `backward`, which then refuses the result.

        Returns
        -------
        Output

        Raises
        ------
        TypeError, ValueError, KeyError
            For a wrong type, dtype, shape or value, or wrong names in `init`, naming the argument.
        """
        spec = self._spec
        if spec.bfloat16_inputs and getattr(getattr(x, "dtype", None), "name", "") == "bfloat16":
            x = x.view(np.dtype(np.uint16).newbyteorder(x.dtype.byteorder))
        if seed is not None:
            _check_seed(seed)
        single = isinstance(x, np.ndarray) and x.ndim == 2 and not spec.has_network
        x = x[None] if single else x
        batch = self._check_x(x)
        mask = self._check_mask("mask", mask, x.shape[:2], single)
        iters = spec.num_iters if num_iters is None else num_iters
        count("num_iters", iters)
        for name, value in (("attention", attention), ("grad", grad)):
            if not isinstance(value, (bool, np.bool_)):
                raise TypeError(f"{name} must be True or False, got {value!r}")
        slots = self._count_slots(init, num_slots, single)
        slot_mask = self._check_mask("slot_mask", slot_mask, (batch, slots), single)
        if init is None:
            state, noise = self._draw(x, mask, slot_mask, slots, seed)
        else:
            state, noise = self._check_init(init, batch, slots, single), {}
            if "indices" in state:
                _check_indices(state["indices"], mask, x.shape[1])
        arrays = self._parameters.of_core()
        first = "mean" if spec.is_mixture else "slots"
        call = dict(
            x=_plain(x),
            params=arrays,
            state0=state.get(first),
            state1=state.get("log_std"),
            indices=state.get("indices"),
            mask=mask,
            slot_mask=slot_mask,
            iters=iters,
            noise=noise,
            single=single,
            spec=spec,
            drawn=self._parameters.of_draw(),
        )
        *results, call["saved"] = _core.forward(
            core_config(spec),
            call["x"],
            arrays,
            call["state0"],
            call["state1"],
            call["indices"],
            mask,
            slot_mask,
            iters,
            bool(attention),
            bool(grad),
        )
        self._check_results(results)
        if single:
            results = [a if a is None else a[0] for a in results]
        return Output(**dict(zip(_RESULTS, results)), _call=call)

    def backward(self, out: Output, d_slots) -> dict[str, np.ndarray]:
        """Gradients of sum(out.slots * d_slots).

        Parameters
        ----------
        out : what a call of this module returned.
        d_slots : array of out.slots' shape and dtype.

        Returns
        -------
        dict
            Every parameter's name, "x", and the initial state's arrays ("slots", or "mean" and
            "log_std"). Where the state was drawn, the parameters it was drawn from get their
            gradient through it; where it was given, zeros. With `gradient="implicit"` the initial
            state gets zeros (only the last step is differentiated); with "straight-through" it gets
            the final state's gradient.
        """
        if not isinstance(out, Output):
            raise TypeError(f"out must be an Output of this module, got {type(out).__name__}")
        spec, call = self._spec, out._call
        if call["spec"] != spec:
            raise ValueError(
                "out must be of a call of this module, got one of a module with other options"
            )
        if call["saved"] is None:
            raise ValueError(
                "out must be of a call with grad=True, got one with grad=False, which keeps nothing for gradients"
            )
        _check_array("d_slots", d_slots, spec.dtype)
        if d_slots.shape != out.slots.shape:
            raise ValueError(f"d_slots must have shape {out.slots.shape}, got {d_slots.shape}")
        _check_finite("d_slots", d_slots)
        d_slots = _plain(d_slots[None] if call["single"] else d_slots)
        dx, d_state0, d_state1, d_params = _core.backward(
            core_config(spec),
            call["x"],
            call["params"],
            call["state0"],
            call["state1"],
            call["indices"],
            call["mask"],
            call["slot_mask"],
            call["iters"],
            call["saved"],
            d_slots,
            None,
        )
        grads = dict(zip(self._core_names(), d_params))
        state = dict(zip(spec.state_names, (d_state0, d_state1)))
        grads.update(self._drawn_gradients(call, state))
        if state[spec.state_names[0]] is None:
            state[spec.state_names[0]] = np.zeros((*d_slots.shape[:2], spec.dim), spec.dtype)
        grads.update({"x": dx}, **state)
        if call["single"]:
            for name in ("x", *spec.state_names):
                grads[name] = grads[name][0]
        for name, value in grads.items():
            if _first_nonfinite(value) is not None:
                raise ValueError(
                    f"the gradient of {name} is not finite: the numbers are too large "
                    f"for {spec.dtype}"
                )
        return grads

    def _core_names(self):
        return self._parameters.core_names

    # -- checks --------------------------------------------------------------------------------

    def _check_x(self, x):
        _check_array("x", x, "uint16" if self._spec.bfloat16_inputs else self._spec.dtype)
        if x.ndim != 3 or x.shape[2] != self._spec.input_dim:
            raise ValueError(f"x must have shape (B, N, {self._spec.input_dim}), got {x.shape}")
        if 0 in x.shape:
            raise ValueError(
                f"x must hold at least one image of at least one input, got shape {x.shape}"
            )
        _check_finite("x", x)
        return x.shape[0]

    def _check_mask(self, name, mask, shape, single):
        if mask is None:
            return None
        _check_array(name, mask, "bool")
        mask = _shaped(name, mask, shape, single)
        empty = np.flatnonzero(~mask.any(1))
        if len(empty):
            what = "a real input" if name == "mask" else "an active slot"
            raise ValueError(f"{name} must leave every image {what}, got none in image {empty[0]}")
        return _plain(mask)

    def _count_slots(self, init, num_slots, single):
        if num_slots is not None:
            count("num_slots", num_slots)
        if init is None:
            return self._spec.num_slots if num_slots is None else num_slots
        if not isinstance(init, Mapping):
            raise TypeError(f"init must be a dict of arrays, got {type(init).__name__}")
        names = self._spec.state_names
        wanted = [set(names), {"indices", *names[1:]}]
        if set(init) not in wanted:
            raise KeyError(
                f"init must hold {' or '.join(str(sorted(w)) for w in wanted)}, got {sorted(map(str, init))}"
            )
        name = "indices" if "indices" in init else names[0]
        rank = 2 if name == "indices" else 3
        if not isinstance(init[name], np.ndarray):
            raise TypeError(f"init[{name!r}] must be an array, got {type(init[name]).__name__}")
        shape = init[name].shape
        if len(shape) not in (rank, rank - single) or 0 in shape:
            raise ValueError(
                f"init[{name!r}] must have {rank} dimensions, none empty, got shape {shape}"
            )
        slots = shape[-1] if name == "indices" else shape[-2]
        if num_slots is not None and num_slots != slots:
            raise ValueError(
                f"num_slots must agree with init, which has {slots} slots, got {num_slots}"
            )
        return slots

    def _check_init(self, init, batch, slots, single):
        state = {}
        for name, value in init.items():
            indices = name == "indices"
            _check_array(f"init[{name!r}]", value, "int64" if indices else self._spec.dtype)
            shape = (batch, slots) if indices else (batch, slots, self._spec.dim)
            value = _shaped(f"init[{name!r}]", value, shape, single)
            if not indices:
                _check_finite(f"init[{name!r}]", value)
            state[name] = _plain(value)
        return state

    def _check_results(self, results):
        for name, value in zip(_RESULTS[:5], results):
            if value is not None and _first_nonfinite(value) is not None:
                raise ValueError(
                    f"{name} of the output is not finite: x, init, the options or the parameters hold numbers "
                    f"too large for {self._spec.dtype}"
                )

    # -- initial states ------------------------------------------------------------------------

    def _draw(self, x, mask, slot_mask, slots, seed):
        """An initial state and the noise that it was made of."""
        spec = self._spec
        if spec.bfloat16_inputs and spec.kind == "gaussian_mixture":  # which looks at x
            x = from_bfloat16(x).astype(spec.dtype, copy=False)
        if seed is None:
            rng = self._rng
        else:
            rng = np.random.default_rng(int(seed))
        shape = (x.shape[0], slots, spec.dim)
        state, noise = {}, {}
        if spec.start == "inputs":
            state["indices"] = self._draw_indices(rng, x.shape[:2], mask, slot_mask, slots)
        for name, (mu, logsigma) in _DRAWN_FROM[spec.kind].items():
            if name in ("mean", "slots") and spec.start == "inputs":
                continue
            noise[name] = rng.standard_normal(shape).astype(spec.dtype)
            state[name] = (
                self._location(mu, slots) + np.exp(self._location(logsigma, slots)) * noise[name]
            )
        if spec.kind == "gaussian_mixture":
            state["log_std"] = _spread(x, mask, slots)
            if "mean" not in state and "indices" not in state:
                state["mean"] = rng.standard_normal(shape).astype(spec.dtype)
        if spec.kind == "kmeans" and "indices" not in state:
            state["slots"] = rng.standard_normal(shape).astype(spec.dtype)
        return state, noise

    def _location(self, name, slots):
        value = self._parameters[name]
        if value.ndim == 2 and value.shape[0] != slots:
            raise ValueError(
                f"num_slots must be {value.shape[0]}, as {name} has one row for each slot, got {slots}"
            )
        return value

    def _draw_indices(self, rng, shape, mask, slot_mask, slots):
        """Distinct real inputs for the active slots of every image."""
        indices = np.zeros((shape[0], slots), np.int64)
        for b in range(shape[0]):
            real = np.arange(shape[1]) if mask is None else np.flatnonzero(mask[b])
            active = np.arange(slots) if slot_mask is None else np.flatnonzero(slot_mask[b])
            if len(active) > len(real):
                raise ValueError(
                    f"num_slots must not exceed the real inputs that means start at: {len(active)} "
                    f"active slots, {len(real)} real inputs in image {b}"
                )
            indices[b] = real[0]
            indices[b, active] = rng.choice(real, len(active), replace=False)
        return indices

    def _drawn_gradients(self, call, d_state):
        """Through mu + exp(logsigma) noise to the parameters that the state was drawn from."""
        grads = {}
        for name, (mu, logsigma) in _DRAWN_FROM[self._spec.kind].items():
            for parameter in (mu, logsigma):
                grads[parameter] = np.zeros_like(call["drawn"][parameter])
            if name in call["noise"]:
                d = d_state[name]
                scaled = d * np.exp(call["drawn"][logsigma]) * call["noise"][name]
                for parameter, value in ((mu, d), (logsigma, scaled)):
                    axes = (0, 1) if grads[parameter].ndim == 1 else 0
                    grads[parameter] = value.sum(axes).astype(self._spec.dtype)
        return grads

    # -- files ---------------------------------------------------------------------------------

    def save(self, path) -> None:
        """Write parameters and options to a `.safetensors` file, completely or not at all.

        ValueError if a parameter was changed in place to what `load` would refuse, such as NaN.
        """
        arrays = {
            name: self._parameters.checked(name, value) for name, value in self._parameters.items()
        }
        _files.write(
            path, arrays, {"module": type(self).__name__, "options": json.dumps(self._options())}
        )

    @classmethod
    def load(cls, path, **options):
        """A module from a `.safetensors` file.

        `options` are the constructor's arguments; they come from the file where `save` wrote it,
        and must be given for a file from elsewhere, such as a PyTorch twin's `state_dict`.
        """
        arrays, metadata = _files.read(path)
        kind = metadata.get("module", cls.__name__)
        if kind != cls.__name__:
            raise ValueError(f"{path} holds a {kind}, expected a {cls.__name__}")
        try:
            stored = json.loads(metadata.get("options", "{}"))
            known = {name: stored[name] for name in cls._OPTIONS if name in stored}
            if len(known) < len(stored):
                raise ValueError(
                    f"options {', '.join(sorted(set(stored) - set(known)))} are of another version"
                )
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} does not tell a module's options: {error}") from error
        try:
            module = cls(**{**known, **options})
            module.parameters = arrays
        except (KeyError, TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error.args[0]}") from error
        return module

    def __deepcopy__(self, memo):
        new = memo[id(self)] = copy.copy(self)
        for name, value in vars(self).items():  # what a subclass has too
            if name not in ("_spec", "_parameters"):
                setattr(new, name, copy.deepcopy(value, memo))
        new._parameters = Parameters(self._spec, {n: v.copy() for n, v in self._parameters.items()})
        return new


_DRAWN_FROM: dict[str, dict[str, tuple[str, str]]] = {
    "slot_attention": {"slots": ("slots_mu", "slots_logsigma")},
    "slot_mixture": {
        "mean": ("mean_mu", "mean_logsigma"),
        "log_std": ("logstd_mu", "logstd_logsigma"),
    },
    "kmeans": {},
    "gaussian_mixture": {},
}


def _spread(x, mask, slots):
    """Log standard deviation of each image's real inputs, for every slot: where a mixture starts."""
    variance = np.empty((x.shape[0], 1, x.shape[2]))
    for b, rows in enumerate(x):
        rows = rows if mask is None else rows[mask[b]]
        mean = rows.mean(0, dtype=float)
        parts = (
            np.square(rows[i : i + 4096] - mean).sum(0) for i in range(0, len(rows), 4096)
        )  # so that no copy is large
        variance[b] = sum(parts) / len(rows)
    return np.ascontiguousarray(np.repeat(0.5 * np.log(variance + 1e-4), slots, axis=1), x.dtype)


class SlotAttention(_Module):
    """Slot Attention (Locatello et al. 2020, Algorithm 1).

    Parameters
    ----------
    dim : int. D, width of a slot.
    num_slots, num_iters : int. K and T; a call may use others.
    hidden_dim : int. H of the residual MLP.
    input_dim : int, optional. Width of an input; `dim` if not given.
    eps : float. Added to the attention before it is normalised over inputs.
    scale : float, optional. Of the logits; (dim / heads)^-1/2 if not given.
    heads : int. Each has its own softmax over slots; outputs are concatenated.
    qkv_bias : bool. Biases in the maps to queries, keys and values.
    tol : float. Where no slot of an image has moved by more than this in a step (root mean square over
        channels), the next step is that image's last; 0: all steps. `iterations` tells how many were done.
    recompute : bool. Make keys and values again in every step rather than keep them: the memory of a call
        no longer grows with N. Where that is cheap (here, and for K-Means and Gaussian mixtures) large
        images are always worked on so; a `SlotMixture` takes 2 to 4 times as long.
    bfloat16_inputs : bool. x is bfloat16, in half the memory: an array of that type (of the package
        ml_dtypes) or what `to_bfloat16` makes. It is widened where it is read, and nothing else is narrower;
        what changes is the rounding of x, to 8 bits.
    start : "gaussian" or "inputs". Where slots start: drawn from a learned Gaussian, or at the
        values of distinct random inputs.
    gradient : "implicit" (through the last step; the initial state gets zeros), "full", or
        "straight-through" (implicit, and the final state's gradient goes to the initial state).
    dtype : "float32" or "float64".
    seed : int. Of the initial weights and of the states drawn without a seed of their own.

    Examples
    --------
    >>> import numpy as np
    >>> module = SlotAttention(dim=16, num_slots=3)
    >>> out = module(np.zeros((2, 9, 16), "float32"), seed=0, attention=True)
    >>> out
    Output(slots=float32[2, 3, 16], attention=float32[2, 9, 3], iterations=int64[2])
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
        seed=0,
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
                dtype=dtype,
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
    """Slot Mixture Module (Kirilenko et al. 2024, Algorithm 1), or the code its authors released.

    Parameters
    ----------
    dim : int. D, width of a mean; a slot is [mean, variance].
    num_slots, num_iters : int. K and T; a call may use others.
    hidden_dim : int. H of the MLPs.
    input_dim : int, optional. Width of an input; `dim` if not given.
    variant : "paper" or "reference" (the released code; its `slot_norm`, `norm_kv`, prior and temperature are fixed).
    slot_norm : bool. Query and log standard deviation from LayerNorm([mean, log_std]).
    norm_kv : bool. LayerNorm of h before it serves as key's input and value.
    input_mlp : bool. h = MLP(LayerNorm(x)); without it h = x.
    prior : "learned" (mean responsibility) or "uniform".
    temperature : float. Factor of the log density; dim^-1/2 is a useful setting.
    reduce : bool. Slots of width D through a linear map of [mean, variance]; else (B, K, 2D).
    weight_init : "em" (the untrained module is EM for a Gaussian mixture) or "default" (PyTorch's).
    start : "gaussian" or "inputs". Means drawn from a learned Gaussian, or at distinct random inputs.
    gradient : "implicit", "full" or "straight-through"; see `SlotAttention`.
    dtype : "float32" or "float64".
    seed : int. Of the initial weights and of the states drawn without a seed of their own.
    eps : float. Added to the responsibilities before they are normalised over inputs.
    scale : float. Factor of the log density of "reference" alone; dim^-1/2 if not given.
    qkv_bias : bool. Biases of the query's and key's maps (and of the value's, which "reference" has).
    tol, recompute, bfloat16_inputs : as in `SlotAttention`; `tol` is of the means.

    Examples
    --------
    >>> import numpy as np
    >>> module = SlotMixture(dim=16, num_slots=3, start="inputs")
    >>> out = module(np.random.default_rng(0).normal(size=(2, 50, 16)).astype("float32"), seed=0)
    >>> out.mean.shape, bool((out.variance > 0).all())
    ((2, 3, 16), True)
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
        seed=0,
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
                dtype=dtype,
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
    """Differentiable soft K-Means: no parameters, slots are the centres.

    Responsibilities are softmax over slots of -|x - s|^2 scale. Works on (B, N, dim) and on one
    (N, dim) array, whose results have no batch axis.

    Parameters
    ----------
    dim, num_slots, num_iters : int.
    scale : float, optional. dim^-1/2 if not given; a large one gives Lloyd's algorithm.
    eps : float. Added to the responsibilities before they are normalised over inputs.
    start : "inputs" (distinct random inputs) or "gaussian" (standard normal).
    gradient, dtype, seed, tol, recompute, bfloat16_inputs : as in `SlotAttention`; the gradient is "full" by default.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.concatenate([np.zeros((50, 2)), np.ones((50, 2))])
    >>> centres = KMeans(dim=2, num_slots=2, num_iters=10, scale=50., dtype="float64")(x, seed=1).slots
    >>> np.sort(centres[:, 0].round(3)).tolist()
    [0.0, 1.0]
    """

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
        seed=0,
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
                dtype=dtype,
                tol=tol,
                recompute=recompute,
                bfloat16_inputs=bfloat16_inputs,
            ),
            seed,
        )


class GaussianMixture(_Module):
    """Differentiable EM for a Gaussian mixture with diagonal covariances: no parameters.

    Slots are [mean, variance], (B, K, 2 dim). Works on (B, N, dim) and on one (N, dim) array, whose
    results have no batch axis. Variances start at the data's where no `init` is given.

    Parameters
    ----------
    dim, num_slots, num_iters : int.
    prior : "learned" or "uniform". temperature : float. Factor of the log density.
    eps : float. Added to the responsibilities before they are normalised over inputs.
    start : "inputs" (distinct random inputs) or "gaussian" (standard normal).
    gradient, dtype, seed, tol, recompute, bfloat16_inputs : as in `SlotAttention`; the gradient is "full" by default.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 2)) + np.repeat([[0., 0.], [9., 9.]], 50, 0)
    >>> out = GaussianMixture(dim=2, num_slots=2, num_iters=10, dtype="float64")(x, seed=0)
    >>> out.mean.shape, float(out.prior.sum().round(6))
    ((2, 2), 1.0)
    """

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
        seed=0,
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
                dtype=dtype,
                tol=tol,
                recompute=recompute,
                bfloat16_inputs=bfloat16_inputs,
            ),
            seed,
        )
