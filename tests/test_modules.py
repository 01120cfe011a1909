"""The NumPy modules as users see them."""

import copy
import doctest
import os
import pickle

import numpy as np
import pytest
from cases import CASES, attention_total, build, everything, inputs
from processes import run_python

import smm_py
import smm_py._modules


def test_version_is_the_same_everywhere():
    from importlib.metadata import version

    assert smm_py.__version__ == version("smm_py")


@pytest.mark.parametrize("name", CASES)
def test_strides_and_read_only(name):
    module = build(name)
    x, call = inputs(module)
    expected = everything(module, x, call)
    wide = np.zeros((*x.shape[:2], 2 * x.shape[2]))[:, :, ::2]
    wide[:] = x
    transposed = np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)
    frozen = x.copy()
    frozen.flags.writeable = False
    for other in (wide, transposed, frozen):
        got = everything(module, other, call)
        assert all(np.array_equal(got[k], expected[k]) for k in expected)


@pytest.mark.parametrize("name", CASES)
def test_inputs_are_not_modified(name):
    module = build(name)
    x, call = inputs(module, masks=True)
    arrays = [
        x,
        call["mask"],
        call["slot_mask"],
        *call["init"].values(),
        *module.parameters.values(),
    ]
    before = [a.copy() for a in arrays]
    everything(module, x, call)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before))


@pytest.mark.parametrize("name", CASES)
def test_masked_inputs_change_nothing(name):
    """A masked input may hold anything; leaving it out gives the same."""
    module = build(name)
    x, call = inputs(module, batch=1)
    mask = np.ones((1, 37), bool)
    mask[0, [0, 5, 36]] = False
    other = x.copy()
    other[~mask] = 1e3
    got, same = (everything(module, a, {**call, "mask": mask}) for a in (x, other))
    alone = everything(module, np.ascontiguousarray(x[:, mask[0]]), call)
    for key in got:
        if key in ("attention", "d x"):
            assert np.array_equal(got[key][mask], same[key][mask])
            assert np.allclose(got[key][mask], alone[key][0], rtol=1e-9, atol=1e-12)
        else:
            assert np.array_equal(got[key], same[key]), key
            assert np.allclose(got[key], alone[key], rtol=1e-9, atol=1e-10), key
    assert not got["d x"][~mask].any()
    assert np.allclose(got["attention"].sum(-1), attention_total(module))


@pytest.mark.parametrize("name", [n for n in CASES if n != "sa-update-scaled-mean"])  # counts them
def test_inactive_slots(name):
    """An inactive slot keeps its state and gets nothing; without it the others are the same."""
    module = build(name)
    x, call = inputs(module)
    slot_mask = np.array([[True, False, True]] * 2)
    out = module(x, attention=True, slot_mask=slot_mask, **call)
    fewer = {k: np.ascontiguousarray(v[:, [0, 2]]) for k, v in call["init"].items()}
    alone = module(x, attention=True, init=fewer)
    assert np.allclose(out.slots[:, [0, 2]], alone.slots, rtol=1e-9, atol=1e-12)
    assert not out.attention[:, :, 1].any()
    if module._spec.update_masked:
        return
    if module._spec.is_mixture:
        assert np.array_equal(out.mean[:, 1], call["init"]["mean"][:, 1])
        assert np.allclose(out.variance[:, 1], np.exp(2 * call["init"]["log_std"][:, 1]))
        assert not out.prior[:, 1].any()
    else:
        assert np.array_equal(out.slots[:, 1], call["init"]["slots"][:, 1])


@pytest.mark.parametrize("name", CASES)
def test_seeds(name):
    module = build(name)
    x, _ = inputs(module)
    a, b, c = (module(x, seed=s).slots for s in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert not np.array_equal(module(x).slots, module(x).slots)
    again = build(name)
    assert np.array_equal(build(name)(x).slots, again(x).slots)


@pytest.mark.parametrize("start", ["gaussian", "inputs"])
@pytest.mark.parametrize(
    "kind", [smm_py.SlotAttention, smm_py.SlotMixture, smm_py.KMeans, smm_py.GaussianMixture]
)
def test_starts_and_numbers_for_one_call(kind, start):
    module = kind(dim=8, num_slots=3, start=start)
    x = np.random.default_rng(0).standard_normal((2, 20, 8)).astype("float32")
    out = module(x, num_slots=5, num_iters=4, seed=0, attention=True)
    assert out.slots.shape[1] == 5 and out.attention.shape == (2, 20, 5)
    assert np.allclose(out.attention.sum(-1), 1, atol=1e-5)
    if start == "inputs":
        with pytest.raises(ValueError, match="num_slots must not exceed the real inputs"):
            module(x, num_slots=21)
    else:
        assert module(x, num_slots=21).slots.shape[1] == 21  # K > N


def test_one_image_of_a_clustering():
    x = np.random.default_rng(0).standard_normal((40, 6))
    for kind in (smm_py.KMeans, smm_py.GaussianMixture):
        module = kind(dim=6, num_slots=3, dtype="float64")
        one, batch = module(x, seed=3, attention=True), module(x[None], seed=3, attention=True)
        assert one.attention.shape == (40, 3) and np.array_equal(one.slots, batch.slots[0])
        grads = module.backward(one, np.ones_like(one.slots))
        assert grads["x"].shape == x.shape
        assert np.array_equal(grads["x"], module.backward(batch, np.ones_like(batch.slots))["x"][0])


@pytest.mark.parametrize("name", CASES)
def test_copies_and_pickles(name):
    module = build(name)
    x, call = inputs(module)
    out = module(x, **call)
    module.notes = ["a subclass may have more"]
    assert (
        copy.deepcopy(module).notes == module.notes
        and copy.deepcopy(module).notes is not module.notes
    )
    module.owner = {"of": module}
    assert (twin := copy.deepcopy(module)).owner["of"] is twin
    del module.owner
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(twin) == repr(module)
        assert np.array_equal(twin(x, **call).slots, out.slots)
        assert np.array_equal(twin(x).slots, copy.deepcopy(module)(x).slots)  # the generators too
        for key in twin.parameters:
            twin.parameters[key] = twin.parameters[key] * 2
        assert np.array_equal(module(x, **call).slots, out.slots)
    again = pickle.loads(pickle.dumps(out))
    grads = module.backward(again, np.ones_like(out.slots))
    assert np.array_equal(grads["x"], module.backward(out, np.ones_like(out.slots))["x"])


def test_repr_tells_what_is_not_the_default():
    module = smm_py.SlotMixture(dim=8, num_slots=3, norm_kv=True)
    assert repr(module) == "SlotMixture(dim=8, num_slots=3, num_iters=5)"  # as the variant says
    module = smm_py.SlotAttention(heads=2, qkv_dim=6, scale=3**-0.5, dim=8)
    assert repr(module) == "SlotAttention(dim=8, num_slots=7, num_iters=3, heads=2, qkv_dim=6)"


@pytest.mark.parametrize("name", CASES)
def test_repr_can_be_evaluated(name):
    module = build(name)
    assert eval(repr(module), vars(smm_py)).options == module.options


def test_backward_uses_the_parameters_of_the_call():
    module = build("smm")
    x, call = inputs(module)
    out = module(x, **call)
    before = module.backward(out, np.ones_like(out.slots))
    module.parameters["to_q.weight"] = np.zeros_like(module.parameters["to_q.weight"])
    after = module.backward(out, np.ones_like(out.slots))
    assert all(np.array_equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("count", [7, 3000])
def test_backward_uses_what_its_own_call_saved(count):
    """Memory of outputs that are gone is used again, that of outputs that exist is not."""
    module = smm_py.SlotMixture(dim=16, num_slots=3, gradient="full")
    images = np.random.default_rng(5).standard_normal((6, 1, count, 16)).astype("float32")
    ones = np.ones((1, 3, 16), "float32")
    alone = [module.backward(module(x, seed=0), ones)["x"] for x in images]
    outs = [module(x, seed=0) for x in images]
    del outs[1]
    outs.append(module(images[1], seed=0))
    for i, out in zip((0, 2, 3, 4, 5, 1), outs):
        assert np.array_equal(module.backward(out, ones)["x"], alone[i])


def test_gradient_descent_lowers_a_loss():
    """Twenty steps on all parameters from the gradients alone."""
    module = build("smm-stable", gradient="implicit")
    x, call = inputs(module)
    target = np.random.default_rng(3).standard_normal((2, 3, 7))
    losses = []
    for _ in range(20):
        out = module(x, **call)
        error = out.slots - target
        losses.append((error**2).mean())
        grads = module.backward(out, 2 * error / error.size)
        module.parameters = {k: v - 0.02 * grads[k] for k, v in module.parameters.items()}
    assert losses[-1] < 0.5 * losses[0] and np.all(np.diff(losses) < 0)


@pytest.mark.parametrize("scale", [1e-30, 1e6, 1e18, 1e30])
@pytest.mark.parametrize("name", CASES)
def test_numbers_of_any_size(name, scale):
    """Finite, or a ValueError that says why."""
    module = build(name, dtype="float32")
    x, call = inputs(module)
    for init in (
        call["init"],
        {k: (v * scale if k != "log_std" else v) for k, v in call["init"].items()},
    ):
        try:
            out = module(np.float32(x * scale), init=init, attention=True)
            grads = module.backward(out, np.ones_like(out.slots))
        except ValueError as error:
            assert "float32" in str(error)
            continue
        assert all(np.isfinite(g).all() for g in grads.values())


@pytest.mark.parametrize("name", CASES)
def test_simd_sets_agree(name):
    """Each set within float32 rounding of plain C, judged by the float64 result."""
    chosen, sets, _ = smm_py._core.simd()
    module, exact = build(name, dtype="float32"), build(name)
    x, call = inputs(exact, count=70)
    single = {"init": {k: v.astype("float32") for k, v in call["init"].items()}}
    truth = everything(
        exact,
        x.astype("float32").astype(float),
        {"init": {k: v.astype(float) for k, v in single["init"].items()}},
    )
    exact.parameters = {k: v.astype(float) for k, v in module.parameters.items()}
    truth = everything(
        exact,
        x.astype("float32").astype(float),
        {"init": {k: v.astype(float) for k, v in single["init"].items()}},
    )
    errors = {}
    try:
        for simd in [s for s, there in sets.items() if there]:
            smm_py._core.select_simd(simd)
            got = everything(module, x.astype("float32"), single)
            errors[simd] = max(
                np.abs(got[k] - truth[k]).max() / (np.abs(truth[k]).max() + 1e-3)
                for k in truth
                if k != "d norm_slots.bias"
            )
    finally:
        smm_py._core.select_simd(chosen)
    assert "scalar" in errors
    assert max(errors.values()) <= 8 * errors["scalar"] + 1e-6, errors


def test_docstrings():
    results = doctest.testmod(smm_py._modules)
    assert results.attempted > 8 and not results.failed
    results = doctest.testmod(smm_py)
    assert results.attempted > 4 and not results.failed


def test_show_config(capsys):
    smm_py.show_config()
    text = capsys.readouterr().out
    assert smm_py.__version__ in text and "threads" in text and smm_py._core.simd()[0] in text


def test_import_is_light():
    """NumPy, the extension and a little of the standard library."""
    code = """
import sys, numpy
before = set(sys.modules)
import smm_py
heavy = {"torch", "scipy", "matplotlib", "PIL", "sklearn", "tqdm"}
heavy |= {"secrets", "hashlib", "difflib", "pathlib", "platform", "importlib.metadata"}
print(*(m for m in set(sys.modules) - before if m in heavy or m.split(".")[0] in heavy))
"""
    done = run_python("-c", code)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stdout + done.stderr


def test_forced_simd():
    code = "import smm_py; print(smm_py._core.simd()[0])"

    def run(value):
        return run_python("-c", code, env={**os.environ, "SMM_SIMD": value})

    assert run("scalar").stdout.strip() == "scalar"
    assert "SMM_SIMD must name" in run("avx1024").stderr


def test_many_slots_share_an_input():
    """Responsibilities sum to one however many slots there are."""
    module = smm_py.SlotAttention(dim=2, num_slots=2**16, num_iters=1, hidden_dim=2)
    x = np.random.default_rng(0).standard_normal((1, 3, 2)).astype("float32")
    attention = module(x, seed=0, attention=True).attention
    assert np.abs(attention.sum(-1, dtype=float) - 1).max() < 1e-5
