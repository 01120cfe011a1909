"""Every output and gradient against an independent float64 implementation (../shared/vectors)."""

import json
from pathlib import Path

import numpy as np
import pytest

import smm_py

VECTORS = Path(__file__).resolve().parents[2] / "shared" / "vectors"
FILES = sorted(VECTORS.glob("*.npz"))
pytestmark = pytest.mark.skipif(not FILES, reason="needs ../shared/vectors beside the checkout")

STATES = ("slots", "mean", "log_std")


def build(file, dtype):
    """The module that a file describes, its call's arguments, and the file's arrays by group."""
    arrays = np.load(file)
    options = json.loads(str(arrays["meta"]))
    kind = options.pop("kind")
    if kind in ("KMeans", "GaussianMixture"):
        options.pop("hidden_dim")
        options.pop("input_dim")
    module = getattr(smm_py, kind)(**options, dtype=dtype)
    groups = {g: {k[len(g) + 1:]: arrays[k] for k in arrays.files if k.startswith(g + "/")}
              for g in ("p", "in", "out", "g")}
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


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_float64(file):
    pairs = run(file, "float64")
    assert len(pairs) >= 5
    for name, ours, expected in pairs:
        error = np.abs(ours - expected).max() / scale(name, expected, pairs)
        assert error <= 1e-9, f"{name}: {error:.2e}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_float32_is_as_exact_as_pytorch(file):
    """At most 3 times the error of the plain PyTorch broadcast form in float32, array by array."""
    pytest.importorskip("torch")
    from plain_torch import float32_errors

    pairs = run(file, "float32")
    peer = float32_errors(file)
    for name, ours, expected in pairs:
        size = scale(name, expected, pairs)
        error = np.sqrt(np.mean((ours - expected) ** 2)) / size
        # where PyTorch happens to be exact to a rounding, a few roundings are allowed
        bound = max(3 * peer[name] / size, 4 * np.finfo(np.float32).eps)
        assert error <= bound, f"{name}: {error:.2e} against {peer[name] / size:.2e}"
