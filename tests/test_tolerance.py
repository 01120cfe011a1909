"""Stopping early: `tol` ends each image where its slots have settled, and changes nothing else."""

import itertools

import numpy as np
import pytest
from cases import STEPWISE, build, inputs

STEPS = 12
GRADIENTS = ["full", "implicit", "straight-through", "bilevel"]


def one_image(call, b):
    return {
        name: {n: a[b : b + 1] for n, a in value.items()} if name == "init" else value[b : b + 1]
        for name, value in call.items()
    }


def movements(module, x, call):
    """The movement of every step but the last, from runs of 1, 2, 3, ... steps: (STEPS - 1, B)."""
    states = [call["init"][module._spec.state_names[0]]]
    for steps in range(1, STEPS):
        out = module(x, num_iters=steps, **call)
        states.append(out.slots[..., : module._spec.dim] if out.mean is None else out.mean)
    moved = np.sqrt(np.square(np.diff(states, axis=0)).mean(-1))
    return np.where(call["slot_mask"], moved, 0).max(-1)


def expected_iterations(moved, tol):
    settled = np.vstack([moved <= tol, np.ones(moved.shape[1], bool)])
    return np.minimum(settled.argmax(0) + 2, STEPS)


# A "run of one step" of the reference variant takes two: its movements are tested below.
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", STEPWISE)
def test_stops_where_it_has_settled(name, gradient):
    module = build(name, gradient=gradient, num_iters=STEPS)
    x, call = inputs(module, batch=4, masks=True)
    moved = movements(module, x, call)
    tol = 1.01 * float(
        np.median(moved[3])
    )  # amid the images' movements, so that they stop at different steps
    stopping = type(module)(**{**module.options, "tol": tol})
    stopping.parameters = dict(module.parameters)
    out = stopping(x, **call)
    assert out.iterations.tolist() == expected_iterations(moved, tol).tolist()
    assert out.iterations.min() < STEPS
    d_slots = np.random.default_rng(3).standard_normal(out.slots.shape)
    grads = stopping.backward(out, d_slots)
    total = {n: np.zeros_like(p) for n, p in module.parameters.items()}
    for b, steps in enumerate(out.iterations.tolist()):
        alone = module(x[b : b + 1], num_iters=steps, **one_image(call, b))
        assert alone.slots.tobytes() == out.slots[b : b + 1].tobytes()
        if out.log_likelihood is not None:
            assert alone.log_likelihood[0] == out.log_likelihood[b]
        found = module.backward(alone, d_slots[b : b + 1])
        assert found["x"].tobytes() == grads["x"][b : b + 1].tobytes()
        for n in total:
            total[n] += found[n]
    for n, value in total.items():
        np.testing.assert_allclose(grads[n], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["reference", "smm", "sa"])
def test_attention_and_masked_inputs(name):
    """Attention is the last step's, also where that comes early."""
    module = build(name, num_iters=STEPS)
    x, call = inputs(module, batch=4, masks=True)
    stopping = type(module)(**{**module.options, "tol": 0.3})
    stopping.parameters = dict(module.parameters)
    out = stopping(x, attention=True, **call)
    assert out.iterations.min() < STEPS
    for b, steps in enumerate(out.iterations.tolist()):
        alone = module(x[b : b + 1], num_iters=steps, attention=True, **one_image(call, b))
        assert alone.attention.tobytes() == out.attention[b : b + 1].tobytes()


def test_without_tolerance_every_step_is_done():
    module = build("gmm", num_iters=5)
    x, call = inputs(module)
    assert module(x, **call).iterations.tolist() == [5, 5]


@pytest.mark.parametrize(
    "bad, error",
    [(-1.0, ValueError), (float("nan"), ValueError), ("a", TypeError), (True, TypeError)],
)
def test_bad_tolerance(bad, error):
    with pytest.raises(error, match="tol must be"):
        build("smm", tol=bad)


@pytest.mark.parametrize(
    "name, gradient",
    [
        *itertools.product(["sa", "smm", "reference", "gmm"], GRADIENTS),
        ("reference-fair", "full"),
        ("reference-fair", "implicit"),
    ],
)
def test_lean_form_stops_alike(name, gradient):
    torch = pytest.importorskip("torch")
    import smm_py.torch as twins
    from smm_py.torch._modules import force_lean

    module = build(name, num_iters=STEPS, gradient=gradient)
    x, call = inputs(module, batch=4, masks=True)
    twin = getattr(twins, type(module).__name__)(**{**module.options, "tol": 0.3})
    twin.load_state_dict({n: torch.tensor(p) for n, p in module.parameters.items()})
    found = []
    for lean in (False, True):
        leaf = torch.tensor(x, requires_grad=True)
        init = {n: torch.tensor(a) for n, a in call["init"].items()}
        masks = {n: torch.tensor(call[n]) for n in ("mask", "slot_mask")}
        twin.zero_grad()
        if lean:
            with force_lean():
                result = twin.run(leaf, init, **masks, return_attention=True, history=True)
        else:
            result = twin.run(leaf, init, **masks, return_attention=True, history=True)
        (result.slots.square().sum() + result.attention.square().sum()).backward()
        found.append(
            [
                result.iterations,
                result.slots,
                result.attention,
                leaf.grad,
                *(result.history[n] for n in sorted(result.history)),
                *(p.grad for p in twin.parameters() if p.grad is not None),
            ]
        )
    assert found[0][0].min() < STEPS
    for core, lean in zip(*found, strict=True):
        torch.testing.assert_close(core, lean, rtol=1e-8, atol=1e-8)
