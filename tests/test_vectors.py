"""Every output and gradient against an independent float64 implementation (tests/data/vectors)."""

import numpy as np
import pytest
from vectors import FILES, read

import smm_py

STATES = ("slots", "mean", "log_std")


def build(file, dtype):
    """The module that a file describes, its call's arguments, and the file's arrays by group."""
    kind, options, groups = read(file, smm_py)
    module = kind(**options, dtype=dtype)
    for name, value in groups["p"].items():
        module.parameters[name] = value.astype(dtype)
    call = {"init": {k: groups["in"][k].astype(dtype) for k in STATES if k in groups["in"]}}
    for name in ("mask", "slot_mask"):
        if name in groups["in"]:
            call[name] = groups["in"][name].astype(bool)
    return module, call, groups


def run(file, dtype):
    """Pairs (name, ours, expected) of every output and gradient."""
    module, call, groups = build(file, dtype)
    out = module(groups["in"]["x"].astype(dtype), attention=True, **call)
    grads = module.backward(out, groups["in"]["d_slots"].astype(dtype))
    pairs = [(name, getattr(out, name), value) for name, value in groups["out"].items()]
    pairs += [("d " + name, grads[name], value) for name, value in groups["g"].items()]
    return pairs


def scale(name, expected, pairs):
    """What an error is relative to: the array's largest value.

    Adding to every query alike changes no responsibility of Slot Attention, so the gradient of
    norm_slots.bias is zero but for rounding; it is measured beside its weight's.
    """
    if name == "d norm_slots.bias":
        expected = next(e for n, _, e in pairs if n == "d norm_slots.weight")
    return np.abs(expected).max() or 1.0


def test_all_files_are_here():
    assert len(FILES) == 14


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_float64(file):
    pairs = run(file, "float64")
    assert len(pairs) >= 4
    for name, ours, expected in pairs:
        error = np.abs(ours - expected).max() / scale(name, expected, pairs)
        assert error <= 1e-12, f"{name}: {error:.2e}"


def perturbed(groups, seed):
    """The file's inputs moved a little, in float32: rounding errors of one problem are luck."""
    rng = np.random.default_rng(seed)
    moved = {}
    for name, value in groups["in"].items():
        noise = 0.1 * rng.standard_normal(value.shape) if value.dtype == np.float64 else 0
        moved[name] = (value + noise).astype("float32") if value.dtype == np.float64 else value
    return moved


def results(file, dtype, inputs):
    module, call, groups = build(file, "float32")
    if dtype == "float64":  # the same numbers, more digits
        single = module
        module, _, _ = build(file, dtype)
        module.parameters = {k: v.astype(dtype) for k, v in single.parameters.items()}
    call["init"] = {k: inputs[k].astype(dtype) for k in call["init"]}
    out = module(inputs["x"].astype(dtype), attention=True, **call)
    grads = module.backward(out, inputs["d_slots"].astype(dtype))
    return {
        **{k: getattr(out, k) for k in groups["out"]},
        **{"d " + k: grads[k] for k in groups["g"]},
    }


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_float32_is_as_exact_as_pytorch(file):
    """At most 3 times the error of the plain PyTorch broadcast form in float32, array by array.

    Errors are root mean squares against float64, the median ratio over perturbed problems is taken.
    """
    pytest.importorskip("torch")
    from plain_torch import float32_results

    kind, options, groups = read(file, smm_py)
    options["kind"] = kind.__name__
    ratios = {}
    for seed in range(7):
        inputs = perturbed(groups, seed)
        exact, ours = (results(file, dtype, inputs) for dtype in ("float64", "float32"))
        peer = float32_results(options, groups["p"], inputs)
        for name, value in exact.items():
            errors = [np.sqrt(np.mean((a[name] - value) ** 2)) for a in (ours, peer)]
            # PyTorch may hit a value exactly
            floor = np.finfo(np.float32).eps / 4 * np.abs(value).max()
            if np.isfinite(errors[1]) and name != "d norm_slots.bias":
                ratios.setdefault(name, []).append(errors[0] / max(errors[1], floor, 1e-30))
    assert len(ratios) >= 3
    for name, ratio in ratios.items():
        # PyTorch's gradient is NaN where a prior has underflowed to 0: too little to compare with
        assert len(ratio) < 4 or np.median(ratio) <= 3, (
            f"{name}: {np.median(ratio):.2f} times PyTorch's error"
        )
