"""Inputs in bfloat16: they are what a float32 call of the rounded numbers gives, to the bit."""

import numpy as np
import pytest
from cases import CASES, STARTS, build, everything, inputs

import smm_py

torch = pytest.importorskip("torch")
import smm_py.torch as st  # noqa: E402
from smm_py.torch import _modules, _ops  # noqa: E402


def test_rounding():
    """As PyTorch rounds: nearest, ties to even, infinities and NaN kept."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(10_000) * 10.0 ** rng.integers(-38, 38, 10_000)).astype("float32")
    ties = np.array([0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x80000001, 0x00008000], np.uint32).view(
        np.float32
    )
    x = np.concatenate([x, ties, np.array([0, -0.0, np.inf, -np.inf, 1e-45], "float32")]).reshape(
        5, -1
    )
    expected = torch.from_numpy(x).bfloat16()
    assert np.array_equal(smm_py.to_bfloat16(x), expected.view(torch.uint16).numpy())
    assert np.array_equal(smm_py.from_bfloat16(smm_py.to_bfloat16(x)), expected.float().numpy())
    for nan in np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32):
        assert np.isnan(smm_py.from_bfloat16(smm_py.to_bfloat16(np.array([nan]))))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("how", ["plain", "masks", "indices"])
@pytest.mark.parametrize("name", CASES)
def test_same_bits_as_the_rounded_numbers(name, how, dtype):
    if how == "indices" and name not in STARTS:
        pytest.skip("means are of another width than values")
    wide = build(name, dtype=dtype)
    narrow = build(name, dtype=dtype, bfloat16_inputs=True)
    x, call = inputs(wide, 3, 150, masks=how == "masks", indices=how == "indices")
    bits = smm_py.to_bfloat16(x.astype("float32"))
    rounded = smm_py.from_bfloat16(bits).astype(dtype)
    assert not np.array_equal(rounded, x)
    expected, got = everything(wide, rounded, call), everything(narrow, bits, call)
    for key, value in expected.items():
        assert value.dtype == got[key].dtype and value.tobytes() == got[key].tobytes(), key
    if how == "plain":  # the state drawn from x
        assert np.array_equal(wide(rounded, seed=3).slots, narrow(bits, seed=3).slots)


def test_numpy_arrays_of_the_type():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    module = build("smm", dtype="float32", bfloat16_inputs=True)
    x, call = inputs(module)
    given = x.astype(ml_dtypes.bfloat16)
    assert np.array_equal(module(given, **call).slots, module(smm_py.to_bfloat16(x), **call).slots)
    with pytest.raises(TypeError, match="x must be a uint16 array, got an array of [<>]u2"):
        module(given.byteswap().view(given.dtype.newbyteorder()), **call)


def test_wrong_inputs_are_named():
    module = build("smm", dtype="float32", bfloat16_inputs=True)
    x, call = inputs(module)
    with pytest.raises(TypeError, match="x must be a uint16 array, got an array of float32"):
        module(x, **call)
    with pytest.raises(TypeError, match="x must be a float32 array, got an array of uint16"):
        build("smm", dtype="float32")(smm_py.to_bfloat16(x), **call)
    x[1, 2, 3] = np.inf
    with pytest.raises(ValueError, match=r"x must be finite, got inf at index \(1, 2, 3\)"):
        module(smm_py.to_bfloat16(x), **call)
    with pytest.raises(TypeError, match="bfloat16_inputs must be True or False, got 1"):
        smm_py.SlotMixture(bfloat16_inputs=1)
    with pytest.raises(TypeError, match="x must be a torch.bfloat16 tensor, got torch.float32"):
        st.SlotMixture(dim=8, bfloat16_inputs=True)(torch.zeros(1, 9, 8))
    with pytest.raises(TypeError, match="x must be a torch.float32 tensor, got torch.bfloat16"):
        st.SlotMixture(dim=8)(torch.zeros(1, 9, 8, dtype=torch.bfloat16))


KINDS = {
    "sa": (st.SlotAttention, dict(input_dim=5)),
    "smm": (st.SlotMixture, dict(input_dim=5, norm_kv=True, start="inputs")),
    "reference": (st.SlotMixture, dict(variant="reference")),
    "gmm": (st.GaussianMixture, {}),
}


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_tensors(name, lean, monkeypatch):
    """Slots, attention and gradients of a bfloat16 tensor; that of x is rounded to its type."""
    monkeypatch.setattr(_modules, "_force_lean", lean)
    kind, options = KINDS[name]
    torch.manual_seed(0)
    narrow = kind(dim=8, num_slots=3, num_iters=2, bfloat16_inputs=True, **options)
    wide = kind(dim=8, num_slots=3, num_iters=2, **options)
    wide.load_state_dict(narrow.state_dict())
    x = torch.randn(2, 70, narrow._spec.input_dim).bfloat16()
    results = []
    for module, given in ((narrow, x.clone().requires_grad_()), (wide, x.float().requires_grad_())):
        slots, attention = module(
            given, return_attention=True, generator=torch.Generator().manual_seed(1)
        )
        (slots.square().sum() + attention.square().sum()).backward()
        results.append(
            [
                slots,
                attention,
                given.grad.to(torch.bfloat16),
                *(p.grad for p in module.parameters() if p.grad is not None),
            ]
        )
    assert results[0][0].dtype == torch.float32
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert narrow(x.float()).dtype == torch.float32


def test_graphs():
    module = st.SlotMixture(dim=8, num_slots=3, num_iters=2, bfloat16_inputs=True)
    x, state = torch.randn(2, 20, 8).bfloat16(), torch.randn(2, 3, 8)
    params = [
        p.detach() for n, p in module.named_parameters() if "mu" not in n and "sigma" not in n
    ]
    config = _ops.config_text(module._spec)
    args = [x, params, state, 0.2 * state, *[None] * 5, config, 2]
    torch.library.opcheck(torch.ops.smm_py.forward, (*args, True, False, False, True))
    saved = torch.ops.smm_py.forward(*args, True, False, False, True)[-1]
    d_outputs = [torch.ones(2, 3, 8), *[None] * 5]
    torch.library.opcheck(torch.ops.smm_py.backward, (*args, saved, *d_outputs))
