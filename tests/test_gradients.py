"""Central finite differences of every parameter, input and initial state, in float64."""

import numpy as np
import pytest
from cases import CASES, STARTS, STEPWISE, build, inputs, output_gradients, weighted

STEP = 1e-5


def difference(function, array, index):
    kept = array[index]
    array[index] = kept + STEP
    up = function()
    array[index] = kept - STEP
    down = function()
    array[index] = kept
    return (up - down) / (2 * STEP)


def compare(function, array, gradient, rng, name, scale, most=12):
    """Up to `most` elements, chosen at random; errors relative to the largest gradient of all."""
    flat = rng.permutation(array.size)[:most]
    for index in zip(*np.unravel_index(flat, array.shape)):
        numeric = difference(function, array, index)
        assert abs(numeric - gradient[index]) <= 1e-6 * scale, (
            f"{name}{index}: {numeric} and {gradient[index]}"
        )


@pytest.mark.parametrize("masks", [False, True], ids=["", "masks"])
@pytest.mark.parametrize("name", CASES)
def test_full(name, masks):
    """Of every output, with masks of inputs and slots too."""
    module = build(name)
    x, call = inputs(module, masks=masks)
    rng = np.random.default_rng(5)
    out = module(x, **call, attention=True)
    d = output_gradients(out, rng)
    if masks:  # masked inputs get nothing from their attention
        d["d_attention"] *= call["mask"][..., None]
    grads = module.backward(out, **d)
    scale = max(np.abs(g).max() for g in grads.values())

    def loss():
        return weighted(module(x, **call, attention=True), d)

    for key, array in call["init"].items():
        compare(loss, array, grads[key], rng, key, scale)
    compare(loss, x, grads["x"], rng, "x", scale, 20)
    for key in module.parameters:
        compare(loss, module.parameters[key], grads[key], rng, key, scale)


def one_step(name, call, x):
    """The module's state before its last step, and a module that does that step alone."""
    module = build(name, gradient="implicit", num_iters=3)
    last = build(name, gradient="full", num_iters=1)
    before = module(x, **{**call, "num_iters": 2})
    return module, last, before


@pytest.mark.parametrize("name", STEPWISE)
def test_implicit_is_the_last_step_alone(name):
    """With the state before the last step held fixed, differences of that step are the gradient.

    (The reference variant takes an extra step: it is in test_vectors and test_peers.)
    """
    x, call = inputs(build(name))
    module, last, before = one_step(name, call, x)
    state = before.state
    out = module(x, **call)
    d = output_gradients(out, np.random.default_rng(5))
    assert np.abs(last(x, init=state).slots - out.slots).max() < 1e-12
    grads = module.backward(out, **d)
    scale = max(np.abs(g).max() for g in grads.values())

    def loss():
        return weighted(last(x, init=state), d)

    rng = np.random.default_rng(6)
    compare(loss, x, grads["x"], rng, "x", scale, 20)
    for key in module.parameters:
        compare(loss, last.parameters[key], grads[key], rng, key, scale)
    for key in call["init"]:
        assert not grads[key].any()


@pytest.mark.parametrize("name", STEPWISE)
def test_bilevel_reaches_the_initial_state(name):
    """Like implicit, and the initial state gets what the state before the last step would."""
    x, call = inputs(build(name), masks=True)
    masks = {n: call[n] for n in ("mask", "slot_mask")}
    module, last, before = one_step(name, call, x)
    bilevel = build(name, gradient="bilevel", num_iters=3)
    out, other, step = module(x, **call), bilevel(x, **call), last(x, before.state, **masks)
    assert np.array_equal(out.slots, other.slots)
    d = output_gradients(out, np.random.default_rng(5))
    implicit, grads = module.backward(out, **d), bilevel.backward(other, **d)
    alone = last.backward(step, **d)
    for key in implicit:
        if key not in call["init"]:
            assert np.array_equal(grads[key], implicit[key]), key
        else:
            expected = alone[key]
            if key == "prior":  # that of an inactive slot is replaced by 0
                expected = np.where(masks["slot_mask"], expected, 0)
            np.testing.assert_allclose(grads[key], expected, rtol=1e-10, atol=1e-12, err_msg=key)
            assert key == "prior" or grads[key].any()


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("reference-fair")])
def test_straight_through(name):
    """Like implicit, but the initial state gets the final state's gradient unchanged."""
    module, implicit = build(name, gradient="straight-through"), build(name, gradient="implicit")
    x, call = inputs(module)
    out, other = module(x, **call), implicit(x, **call)
    d_slots = np.random.default_rng(5).standard_normal(out.slots.shape)
    d_prior = {} if out.prior is None else {"d_prior": np.random.default_rng(6).random((2, 3))}
    grads = module.backward(out, d_slots, **d_prior)
    theirs = implicit.backward(other, d_slots, **d_prior)
    assert np.array_equal(out.slots, other.slots)
    for key in theirs:
        if key not in call["init"]:
            assert np.array_equal(grads[key], theirs[key]), key
        else:
            assert not theirs[key].any() and grads[key].any()
    if d_prior:
        assert np.array_equal(grads["prior"], d_prior["d_prior"])
    if name in ("sa", "kmeans"):  # the slots are the state
        assert np.array_equal(grads["slots"], d_slots)
    if name == "gmm":  # the slots are [mean, variance] of the state
        assert np.allclose(grads["mean"], d_slots[..., :5], rtol=1e-12)
        assert np.allclose(grads["log_std"], 2 * out.variance * d_slots[..., 5:], rtol=1e-12)


@pytest.mark.parametrize("name", STARTS)
def test_starts_at_inputs_are_constants(name):
    """Means that start at rows of h get no gradient, and h gets none through them."""
    module = build(name)
    x, call = inputs(module, indices=True, masks=True)
    out = module(x, **call)
    d_slots = np.random.default_rng(5).standard_normal(out.slots.shape)
    grads = module.backward(out, d_slots)
    first = module._spec.state_names[0]
    assert not grads[first].any()
    if not module._spec.has_network:  # h is x: the same start, given as an array
        rows = np.take_along_axis(x, call["init"]["indices"][..., None], 1)
        init = {**{k: v for k, v in call["init"].items() if k != "indices"}, first: rows}
        same = module(x, **{**call, "init": init})
        assert np.allclose(same.slots, out.slots, rtol=1e-12, atol=1e-14)
        assert np.allclose(module.backward(same, d_slots)["x"], grads["x"], rtol=1e-9, atol=1e-12)


def test_gradient_of_the_drawn_state():
    """Through mu + exp(logsigma) noise, also with one row for each slot."""
    for rows in (False, True):
        module = build("smm")
        for key in ("mean_mu", "mean_logsigma", "logstd_mu", "logstd_logsigma"):
            value = module.parameters[key]
            module.parameters[key] = np.tile(value, (3, 1)) + 0.0 if rows else value
        x, _ = inputs(module)
        out = module(x, seed=4)
        d_slots = np.random.default_rng(5).standard_normal(out.slots.shape)
        grads = module.backward(out, d_slots)
        scale = max(np.abs(g).max() for g in grads.values())

        def loss(module=module, x=x, d_slots=d_slots):
            return float((module(x, seed=4).slots * d_slots).sum())

        for key in ("mean_mu", "mean_logsigma", "logstd_mu", "logstd_logsigma"):
            compare(loss, module.parameters[key], grads[key], np.random.default_rng(1), key, scale)
