"""Options of other implementations, against plain formulas, and their state dicts."""

import os
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, build, inputs

torch = pytest.importorskip("torch")
import plain_torch  # noqa: E402
from peer_files import MOST, errors  # noqa: E402

import smm_py.torch as twins  # noqa: E402

FOLDER = os.environ.get("SMM_PEERS")
FILES = sorted(Path(FOLDER).glob("*.npz")) if FOLDER else []
LEARNED = [name for name, (kind, _) in CASES.items() if kind.__name__.startswith("Slot")]


def leaves_of(module, x, call):
    given = {"x": x, **call["init"], **module.parameters}
    return {n: torch.tensor(a, requires_grad=True) for n, a in given.items()}


def plain_results(module, x, call, masks):
    leaves = leaves_of(module, x, call)
    options = {**module.options, "kind": type(module).__name__}
    state = [leaves[n] for n in module._spec.state_names]
    return plain_torch.run(
        options, leaves, leaves["x"], state, **masks, prior=leaves.get("prior")
    ), leaves


def twin_results(module, x, call, masks):
    leaves = leaves_of(module, x, call)
    twin = getattr(twins, type(module).__name__)(**module.options)
    parameters = {n: leaves[n] for n in module.parameters}
    init = {n: leaves[n] for n in call["init"]}
    arguments = (leaves["x"], init, masks.get("mask"), masks.get("slot_mask"))

    class Run(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.twin = twin

        def forward(self):
            return self.twin.run(*arguments, return_attention=True)

    named = {f"twin.{n}": p for n, p in parameters.items()}
    with twins.force_lean():
        out = torch.func.functional_call(Run(), named)
    return out._asdict(), leaves


@pytest.mark.filterwarnings("ignore:.*which is zero with gradient")
@pytest.mark.parametrize("gradient", ["full", "implicit", "straight-through", "bilevel"])
@pytest.mark.parametrize("name", LEARNED)
def test_plain_formulas(name, gradient):
    """Every output and gradient of the form in PyTorch operations (the core's are compared with
    it elsewhere)."""
    if name.startswith("reference-fair") and gradient not in ("full", "implicit"):
        pytest.skip("these have no other gradient")
    module = build(name, gradient=gradient, num_iters=3)
    x, call = inputs(module, masks=True)
    masks = {n: torch.tensor(call[n]) for n in ("mask", "slot_mask")}
    (expected, theirs), (got, ours) = (
        results(module, x, call, masks) for results in (plain_results, twin_results)
    )
    rng = np.random.default_rng(5)
    weights = {n: torch.tensor(rng.standard_normal(v.shape)) for n, v in expected.items()}
    weights["attention"] *= masks["mask"][..., None]  # no gradient comes from masked inputs'
    for n, value in expected.items():
        torch.testing.assert_close(got[n], value, rtol=1e-9, atol=1e-10)
    for found in (expected, got):
        sum((found[n] * w).sum() for n, w in weights.items()).backward()
    for n, leaf in theirs.items():
        zero = torch.zeros_like(leaf)
        grads = [zero if a.grad is None else a.grad for a in (ours[n], leaf)]
        torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-9, msg=lambda m, n=n: f"{n}: {m}")


@pytest.mark.skipif(not FILES, reason="SMM_PEERS names no folder of their results")
@pytest.mark.parametrize("lean", [False, True], ids=["core", "lean"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files(path, lean):
    """What their own code computes (see peer_files.py)."""
    if lean:
        with twins.force_lean():
            found = errors(path)
    else:
        found = errors(path)
    assert max(found.values()) <= MOST, found
