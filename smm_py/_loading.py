"""What a file of weights holds: which of its arrays are a module's, and with which options.

A file of `save` says both. One of a pipeline's run holds a whole model and its configuration; one
of a `state_dict` holds arrays alone, whose shapes tell some options.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from . import _files
from ._arrays import Array, from_bfloat16
from ._options import Row, near
from ._spec import Spec, parameter_shapes

# names that every module of the kind has
MARKS = {
    "slot_attention": ("slots_mu", "slots_logsigma", "to_q.weight", "to_k.weight"),
    "slot_mixture": ("mean_mu", "logstd_mu", "to_q.weight", "to_k.weight"),
}
# of a pipeline's `model`
KINDS = {
    "sa": "slot_attention",
    "smm": "slot_mixture",
    "kmeans": "kmeans",
    "gmm": "gaussian_mixture",
}
NARROW = {np.dtype("V2"): "bfloat16", np.dtype("float16"): "float16"}
# no result depends on these once there are weights
UNASKED = ("seed", "weight_init", "recompute")


def read(
    path: _files.FilePath,
    name: str,
    kind: str,
    rows: Mapping[str, Row],
    options: Mapping[str, Any],
    assume_defaults: bool,
) -> tuple[dict[str, Any], dict[str, Array]]:
    """The options and the arrays of the module of a file.

    Parameters
    ----------
    path : str or Path
    name : str
        Of the module's class.
    kind : str
        Its kind.
    rows : mapping
        Its table of options.
    options : mapping
        What is given by hand.
    assume_defaults : bool
        What neither the file nor the caller tells is as by default; else an error.

    Raises
    ------
    KeyError, TypeError, ValueError
        Naming the file.
    """
    arrays, metadata = _files.read(path)
    try:
        if "module" in metadata or "options" in metadata:
            if metadata.get("module", name) != name:
                raise ValueError(f"it holds a {metadata['module']}, expected a {name}")
            stored = _json(metadata, "options")
            unknown = sorted(set(stored) - set(rows))
            if unknown:
                raise ValueError(f"options {', '.join(unknown)} are of another version")
        else:
            arrays = _part(arrays, name, kind)
            stored = _told(kind, arrays)
            if "config" in metadata:
                stored |= _of_run(_json(metadata, "config"), name, kind)
            elif not assume_defaults:
                _check_told(rows, {**stored, **options})
        found = {**stored, **options}
        arrays = _widened(arrays, options.get("dtype"))
        every = {**{n: row.default for n, row in rows.items()}, **found}
        spec = Spec(kind, **{n: _plain(v) for n, v in every.items() if n != "seed"})
        _check_shapes(spec, arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error.args[0]}") from error
    return found, arrays


def _plain(value: Any) -> Any:
    """A torch.dtype by its name."""
    text = str(value)
    return text.removeprefix("torch.") if text.startswith("torch.float") else value


def _json(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(metadata.get(name, "{}")))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"it does not tell a module's options: {name}: {error}") from error


def _part(arrays: dict[str, Array], name: str, kind: str) -> dict[str, Array]:
    """The arrays of the only module of that kind, by their names in it."""
    marks = MARKS.get(kind)
    if marks is None:  # there are no arrays
        return {}
    found = [prefix for prefix in _prefixes(arrays, marks[0]) if _has(arrays, prefix, marks)]
    if len(found) != 1:
        shown = ", ".join(repr(prefix) for prefix in found) or "none"
        raise ValueError(f"it must hold one {name}, got {len(found)} (names begin with: {shown})")
    prefix = found[0]
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _prefixes(arrays: Mapping[str, Array], mark: str) -> Iterator[str]:
    for name in arrays:
        prefix = name.removesuffix(mark)
        if prefix != name and (not prefix or prefix.endswith(".")):
            yield prefix


def _has(arrays: Mapping[str, Array], prefix: str, names: tuple[str, ...]) -> bool:
    return all(prefix + name in arrays for name in names)


def _told(kind: str, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """The options that names and shapes tell."""
    if kind not in MARKS:
        return {}
    first = arrays[MARKS[kind][0]]

    def size(name: str, axis: int) -> int | None:
        array = arrays.get(name)
        return int(array.shape[axis]) if array is not None and array.ndim > axis else None

    told: dict[str, Any] = {
        "dim": int(first.shape[-1]) if first.ndim else None,
        "hidden_dim": size("mlp.0.weight", 0) or size("mlp_input.0.weight", 0),
        "qkv_bias": "to_q.bias" in arrays,
        "input_dim": size("norm_input.weight", 0),
        "gru": "gru.weight_ih" in arrays,
    }
    if "mlp.0.weight" not in arrays:
        told["slot_mlp"] = "never"
    if kind == "slot_attention":
        told["qkv_dim"] = size("to_q.weight", 0)
        told["combine_heads"] = "combine_heads.weight" in arrays
    if first.ndim == 2:
        told["num_slots"] = int(first.shape[0])
    if first.dtype in _files.NAMES:
        told["dtype"] = first.dtype.name
    if kind == "slot_mixture":
        told["input_mlp"] = "mlp_input.0.weight" in arrays
        told["reduce"] = "to_out.weight" in arrays or "to_out.2.weight" in arrays
        told["input_dim"] = told["input_dim"] or size("to_k.weight", 1)
        if "to_v.weight" in arrays:
            told["variant"] = "reference"
        elif "to_out.2.weight" in arrays:
            told["variant"] = "fair"
        else:
            told["norm_kv"] = "norm_kv.weight" in arrays
            told["slot_norm"] = "norm_slots.weight" in arrays
    return {name: value for name, value in told.items() if value is not None}


def _of_run(config: Mapping[str, Any], name: str, kind: str) -> dict[str, Any]:
    """The options of the slot module of a pipeline's model, from the run's configuration."""
    model = config.get("model")
    if KINDS.get(str(model)) != kind:
        raise ValueError(f"it is of a run with the model {model!r}, expected one with a {name}")
    told = {"dim": config.get("dim"), "num_slots": config.get("slots")}
    told["num_iters"] = config.get("train_iters")
    if kind in MARKS:
        told |= {"start": config.get("start"), "hidden_dim": config.get("hidden")}
        told["precision"] = "float32"  # `config.precision` is of the convolutions
    else:
        told |= {"gradient": "implicit", "eps": 1e-8}
    if kind in ("slot_mixture", "gaussian_mixture"):
        stable = config.get("variant") == "stable"
        told["prior"] = "uniform" if stable else "learned"
        low = kind == "gaussian_mixture" or stable
        told["temperature"] = config.get("temperature") or (told["dim"] or 1) ** (-0.5 * low)
        told["var_floor"] = 1e-4
    return {key: value for key, value in told.items() if value is not None}


def _check_told(rows: Mapping[str, Row], told: Mapping[str, Any]) -> None:
    """An error where an option would silently take its default."""
    # a variant gives the options that are left to it, and the reference variant has no others
    left = ("start", "prior", "temperature", "norm_kv", "slot_norm") if "variant" in told else ()
    missing = [n for n in rows if n not in told and n not in UNASKED and n not in left]
    if missing:
        defaults = ", ".join(f"{name}={rows[name].default!r}" for name in missing)
        raise ValueError(
            "it does not tell the module's options; give them, or assume_defaults=True for "
            + defaults
        )


def _widened(arrays: dict[str, Array], dtype: object) -> dict[str, Array]:
    """bfloat16 and float16 numbers as of a dtype that was named for them, exactly."""
    for name, array in arrays.items():
        narrow = NARROW.get(array.dtype)
        if narrow is None:
            continue
        if dtype is None:
            raise ValueError(
                f"{name} is {narrow}; give dtype='float32' to have its numbers widened to that"
            )
        wide = from_bfloat16(array.view(np.uint16)) if narrow == "bfloat16" else array
        arrays = {**arrays, name: wide.astype(str(_plain(dtype)))}
    return arrays


def _check_shapes(spec: Spec, arrays: Mapping[str, Array]) -> None:
    """Before anything of those sizes is allocated."""
    shapes = parameter_shapes(spec)
    missing = [name for name in shapes if name not in arrays]
    if missing:
        raise KeyError(f"parameters must hold every name, missing: {', '.join(missing)}")
    for name, array in arrays.items():
        if name not in shapes:
            raise KeyError(f"no parameter {name!r} in this module; {near(name, shapes)}")
        rows = [(spec.num_slots, spec.dim)] if name in spec.drawn_names else []
        if array.shape not in (shapes[name], *rows):
            raise ValueError(f"{name} must have shape {shapes[name]}, got {array.shape}")
