"""Wrong input: the exact kind of error, the argument's name, what was expected and what came."""

import numpy as np
import pytest
from cases import CASES, attention_total, build, inputs

import smm_py


@pytest.fixture
def smm():
    module = build("smm")
    return module, *inputs(module)


def f32(shape=(2, 37, 5)):
    return np.zeros(shape, "float32")


@pytest.mark.parametrize(
    "x, error, match",
    [
        ([[1.0]], TypeError, "x must be a float64 array, got list"),
        (f32(), TypeError, "x must be a float64 array, got an array of float32"),
        (np.zeros((2, 37, 5), int), TypeError, "x must be a float64 array, got an array of int64"),
        (np.zeros((2, 37, 5), ">f8"), TypeError, "x must be a float64 array, got an array of >f8"),
        (
            np.ma.masked_array(np.zeros((2, 37, 5)), True),
            TypeError,
            "x must be a float64 array, got MaskedArray",
        ),
        (np.zeros((37, 5)), ValueError, r"x must have shape \(B, N, 5\), got \(37, 5\)"),
        (np.zeros((2, 37, 6)), ValueError, r"x must have shape \(B, N, 5\), got \(2, 37, 6\)"),
        (np.zeros((2, 0, 5)), ValueError, "x must hold at least one input of each image"),
        (np.full((1, 3, 5), np.nan), ValueError, r"x must be finite, got nan at index \(0, 0, 0\)"),
        (np.full((1, 3, 5), np.inf), ValueError, "x must be finite, got inf"),
    ],
)
def test_x(smm, x, error, match):
    with pytest.raises(error, match=match):
        smm[0](x)


@pytest.mark.parametrize(
    "change, error, match",
    [
        (dict(init=[1]), TypeError, "init must be a dict of arrays, got list"),
        (dict(init={"slots": 1}), KeyError, "init must hold"),
        (dict(init={"mean": np.zeros((2, 3, 7))}), KeyError, "init must hold"),
        (
            dict(init={"mean": 3, "log_std": 3}),
            TypeError,
            r"init\['mean'\] must be an array, got int",
        ),
        (
            dict(init={"mean": np.zeros((2, 3, 7)), "log_std": np.zeros((2, 4, 7))}),
            ValueError,
            r"init\['log_std'\] must have shape \(2, 3, 7\), got \(2, 4, 7\)",
        ),
        (
            dict(init={"mean": np.zeros((2, 0, 7)), "log_std": np.zeros((2, 0, 7))}),
            ValueError,
            "none empty",
        ),
        (
            dict(init={"mean": np.full((2, 3, 7), np.inf), "log_std": np.zeros((2, 3, 7))}),
            ValueError,
            "init.*must be finite",
        ),
        (
            dict(init={"indices": np.zeros((2, 3), "int32"), "log_std": np.zeros((2, 3, 7))}),
            TypeError,
            r"init\['indices'\] must be a int64 array, got an array of int32",
        ),
        (
            dict(init={"indices": np.full((2, 3), 37), "log_std": np.zeros((2, 3, 7))}),
            ValueError,
            r"init\['indices'\] must be rows of real inputs, from 0 to 36, got 37 at index .0, 0.",
        ),
        (
            dict(init={"indices": np.full((2, 3), -1), "log_std": np.zeros((2, 3, 7))}),
            ValueError,
            "indices",
        ),
        (
            dict(mask=np.ones((2, 37))),
            TypeError,
            "mask must be a bool array, got an array of float64",
        ),
        (
            dict(mask=np.ones((2, 36), bool)),
            ValueError,
            r"mask must have shape \(2, 37\), got \(2, 36\)",
        ),
        (
            dict(mask=np.arange(2)[:, None] * np.ones((2, 37)) > 5),
            ValueError,
            "mask must leave every image a real input, got none in image 0",
        ),
        (
            dict(slot_mask=np.ones((2, 4), bool)),
            ValueError,
            r"slot_mask must have shape \(2, 3\), got \(2, 4\)",
        ),
        (
            dict(slot_mask=np.array([[True] * 3, [False] * 3])),
            ValueError,
            "an active slot, got none in image 1",
        ),
        (dict(num_iters=0), ValueError, "num_iters must be at least 1, got 0"),
        (dict(num_iters=2.0), TypeError, "num_iters must be an int, got 2.0"),
        (dict(num_slots=-1), ValueError, "num_slots must be at least 1, got -1"),
        (dict(num_slots=True), TypeError, "num_slots must be an int, got True"),
        (dict(seed="a"), TypeError, "seed must be an int"),
        (dict(seed=-1), ValueError, "seed must be at least 0, got -1"),
        (dict(attention=1), TypeError, "attention must be True or False, got 1"),
    ],
)
def test_call(smm, change, error, match):
    module, x, _ = smm
    with pytest.raises(error, match=match):
        module(x, **change)


@pytest.mark.parametrize(
    "kind, options, error, match",
    [
        (smm_py.SlotMixture, dict(dim=0), ValueError, "dim must be at least 1, got 0"),
        (smm_py.SlotMixture, dict(dim=8.0), TypeError, "dim must be an int, got 8.0"),
        (
            smm_py.SlotMixture,
            dict(variant="papers"),
            ValueError,
            "variant must be one of 'stable', 'paper', 'reference', 'fair', got 'papers'",
        ),
        (
            smm_py.SlotMixture,
            dict(temperature=0),
            ValueError,
            "temperature must be finite and greater than 0, got 0",
        ),
        (
            smm_py.SlotMixture,
            dict(temperature=float("nan")),
            ValueError,
            "temperature must be finite",
        ),
        (smm_py.SlotMixture, dict(norm_kv=1), TypeError, "norm_kv must be True or False, got 1"),
        (
            smm_py.SlotMixture,
            dict(input_dim=5, input_mlp=False),
            ValueError,
            "input_dim must equal dim",
        ),
        (smm_py.SlotMixture, dict(dtype="float16"), ValueError, "dtype must be one of"),
        (smm_py.SlotMixture, dict(gradient=None), TypeError, "gradient must be one of"),
        (smm_py.SlotMixture, dict(weight_init="xavier"), ValueError, "weight_init must be one of"),
        (smm_py.SlotAttention, dict(heads=3), ValueError, "heads must divide dim=64, got 3"),
        (smm_py.SlotAttention, dict(eps=-1.0), ValueError, "eps must be finite and at least 0"),
        (smm_py.SlotMixture, dict(eps=0.0), ValueError, "eps must be finite and greater than 0"),
        (smm_py.SlotAttention, dict(seed=1.5), TypeError, "seed must be an int"),
        (smm_py.SlotAttention, dict(dim=4, heads=8), ValueError, "heads must divide dim=4, got 8"),
        (
            smm_py.SlotAttention,
            dict(qkv_dim=10, heads=4),
            ValueError,
            "heads must divide qkv_dim=10, got 4",
        ),
        (
            smm_py.SlotAttention,
            dict(dim=4, qkv_dim=6, gru=False),
            ValueError,
            "qkv_dim must equal dim=4 where gru=False and combine_heads=False, got 6",
        ),
        (
            smm_py.SlotAttention,
            dict(dim=4, qkv_dim=6, start="inputs"),
            ValueError,
            "start must be \"gaussian\" where qkv_dim=6 differs from dim=4, got 'inputs'",
        ),
        (
            smm_py.SlotAttention,
            dict(update="sum", eps_in="total"),
            ValueError,
            "eps_in must be \"weights\" where update='sum', which has no eps, got 'total'",
        ),
        (
            smm_py.SlotMixture,
            dict(activation="gelu", slot_mlp="never"),
            ValueError,
            'activation must be "relu" where slot_mlp="never", got \'gelu\'',
        ),
        (
            smm_py.SlotMixture,
            dict(norm_hidden=True),
            ValueError,
            "norm_hidden must be False where slot_norm=False, got True",
        ),
        (
            smm_py.SlotMixture,
            dict(variant="reference", update_masked=True),
            ValueError,
            "update_masked must be False where variant='reference', whose weights have no eps",
        ),
        (
            smm_py.SlotMixture,
            dict(variant="fair", gradient="bilevel"),
            ValueError,
            'gradient must be "full" or "implicit" where variant="fair", got \'bilevel\'',
        ),
        (smm_py.SlotMixture, dict(eps_in="total"), TypeError, "has no option 'eps_in'"),
        (
            smm_py.SlotAttention,
            dict(num_iters=2**20),
            ValueError,
            "num_iters must be at most 1048575, got 1048576",
        ),
        (
            smm_py.SlotAttention,
            dict(num_slots=2**70),
            ValueError,
            "num_slots must be at most 1048576",
        ),
        (
            smm_py.SlotAttention,
            dict(hidden_dim=2**25),
            ValueError,
            "hidden_dim must be at most 16777216",
        ),
        (
            smm_py.SlotAttention,
            dict(eps=1e-40),
            ValueError,
            "eps must be at least 1.2e-38 in float32, got 1e-40",
        ),
        (
            smm_py.SlotMixture,
            dict(temperature=1e-300),
            ValueError,
            "temperature must be at least 1.2e-38 in float32, got 1e-300",
        ),
        (smm_py.SlotMixture, dict(tol=-1), ValueError, "tol must be finite and at least 0, got -1"),
        (smm_py.SlotMixture, dict(tol=False), TypeError, "tol must be a number, got False"),
        (smm_py.SlotMixture, dict(tol=np.zeros(3)), TypeError, "tol must be a number"),
        (smm_py.SlotAttention, dict(scale=10**400), ValueError, "scale must be finite"),
        (smm_py.SlotAttention, dict(scale=np.complex64(1)), TypeError, "scale must be a number"),
        (smm_py.KMeans, dict(scale="big"), TypeError, "scale must be a number"),
        (smm_py.GaussianMixture, dict(prior="flat"), ValueError, "prior must be one of"),
    ],
)
def test_options(kind, options, error, match):
    with pytest.raises(error, match=match):
        kind(**options)


def test_what_is_not_used_is_checked_too(smm):
    module, x, call = smm
    with pytest.raises(TypeError, match="seed must be an int, got 'abc'"):
        module(x, **call, seed="abc")


def test_one_image_alone_is_told_of_its_own_shapes():
    module, x = (
        smm_py.KMeans(dim=2, num_slots=3),
        np.random.default_rng(0).standard_normal((30, 2)).astype("float32"),
    )
    with pytest.raises(ValueError, match=r"mask must have shape \(30,\), got \(29,\)"):
        module(x, mask=np.ones(29, bool))
    with pytest.raises(ValueError, match=r"init\['slots'\] must have shape \(3, 2\), got \(3, 1\)"):
        module(x, init={"slots": x[:3, :1].copy()})
    assert module(x, mask=np.ones(30, bool), init={"indices": np.arange(3)}).slots.shape == (3, 2)


def test_numbers_of_numpy_are_options(tmp_path):
    module = smm_py.SlotMixture(
        dim=np.int64(8), num_slots=np.int32(3), scale=np.float32(0.5), norm_kv=np.bool_(True)
    )
    assert repr(module) == repr(smm_py.SlotMixture(dim=8, num_slots=3, scale=0.5, norm_kv=True))
    module.save(tmp_path / "m.safetensors")
    assert repr(smm_py.SlotMixture.load(tmp_path / "m.safetensors")) == repr(module)


@pytest.mark.parametrize("x", [[[1.0]], None, {"a": 1}])
def test_inputs_that_are_no_arrays(x):
    for module in (smm_py.KMeans(dim=1, dtype="float32"), smm_py.SlotAttention(dim=1)):
        with pytest.raises(TypeError, match="x must be a float32 array, got"):
            module(x)


@pytest.mark.parametrize("x", [None, {"a": 1}, ["a"], [[1j]], [[1.0], [1.0, 2.0]]])
def test_inputs_that_are_no_numbers(x):
    with pytest.raises(TypeError, match="x must be an array of real numbers, got"):
        smm_py.KMeans(dim=1)(x)


def test_unaligned_arrays_are_taken(smm):
    module, x, call = smm
    out = module(x, **call)

    def shifted(array):
        new = np.frombuffer(b"." + array.tobytes(), array.dtype, offset=1).reshape(array.shape)
        assert not new.flags.aligned
        return new

    odd = module(
        shifted(x),
        **{**call, "init": {name: shifted(value) for name, value in call["init"].items()}},
    )
    assert np.array_equal(odd.slots, out.slots)
    gradients = [
        module.backward(o, d)
        for o, d in ((out, np.ones_like(out.slots)), (odd, shifted(np.ones_like(out.slots))))
    ]
    assert all(np.array_equal(value, gradients[1][name]) for name, value in gradients[0].items())


@pytest.mark.parametrize("dtype, large", [("float32", 1e20), ("float64", 1e160)])
def test_an_overflow_is_told(dtype, large):
    """Squares of these are infinite; a norm of 0 would make slots that look right."""
    module = smm_py.SlotAttention(dim=8, num_slots=3, dtype=dtype)
    x = np.random.default_rng(0).standard_normal((2, 9, 8)).astype(dtype)
    message = (
        "slots of the output is not finite: "
        f"x, init, the options or the parameters hold numbers too large for {dtype}"
    )
    with pytest.raises(ValueError, match=message):
        module(x * np.asarray(large, dtype))
    assert np.isfinite(module(x * np.asarray(large**0.5, dtype)).slots).all()


@pytest.mark.parametrize("option", ["scale", "temperature", "eps"])
def test_options_that_are_infinite_in_their_dtype(option):
    with pytest.raises(ValueError, match=f"{option} must be a finite float32, got 1e\\+39"):
        smm_py.SlotMixture(**{option: 1e39})
    smm_py.SlotMixture(**{option: 1e39}, dtype="float64")


def test_several_parameters_or_none(smm):
    module = smm[0]
    before = {name: value.copy() for name, value in module.parameters.items()}
    with pytest.raises(ValueError, match="gru.bias_ih must have shape"):
        module.parameters.update(
            {"to_q.weight": 2 * before["to_q.weight"], "gru.bias_ih": before["to_q.weight"]}
        )
    assert all(np.array_equal(module.parameters[name], value) for name, value in before.items())
    module.parameters.update({"to_q.weight": 2 * before["to_q.weight"]})
    assert np.array_equal(module.parameters["to_q.weight"], 2 * before["to_q.weight"])


def test_parameters(smm):
    module = smm[0]
    before = module.parameters["to_q.weight"].copy()
    for name, value, error, match in (
        ("to_q.wieght", before, KeyError, "did you mean to_q.weight"),
        ("to_v.weight", before, KeyError, "no parameter 'to_v.weight'"),
        (
            "to_q.weight",
            before.tolist(),
            TypeError,
            "to_q.weight must be a float64 array, got list",
        ),
        (
            "to_q.weight",
            before.astype("float32"),
            TypeError,
            "to_q.weight must be a float64 array, got an array of float32",
        ),
        (
            "to_q.weight",
            before[:-1],
            ValueError,
            r"to_q.weight must have shape \(7, 7\), got \(6, 7\)",
        ),
        ("to_q.weight", before * np.nan, ValueError, "to_q.weight must be finite"),
    ):
        with pytest.raises(error, match=match):
            module.parameters[name] = value
    with pytest.raises(TypeError, match="cannot be removed"):
        del module.parameters["to_q.weight"]
    with pytest.raises(KeyError, match="missing: norm_input.weight"):
        module.parameters = {"to_q.weight": before}
    assert np.array_equal(module.parameters["to_q.weight"], before)
    module.parameters["to_q.weight"][0, 0] += 1  # a copy was taken: the array is the module's own
    assert before[0, 0] != module.parameters["to_q.weight"][0, 0]


def test_backward(smm):
    module, x, call = smm
    out = module(x, **call)
    good = np.ones_like(out.slots)
    for d_slots, error, match in (
        (good.tolist(), TypeError, "d_slots must be a float64 array, got list"),
        (good.astype("float32"), TypeError, "d_slots must be a float64 array"),
        (good[:1], ValueError, r"d_slots must have shape \(2, 3, 7\), got \(1, 3, 7\)"),
        (good * np.inf, ValueError, "d_slots must be finite"),
    ):
        with pytest.raises(error, match=match):
            module.backward(out, d_slots)
    with pytest.raises(TypeError, match="out must be an Output"):
        module.backward(out.slots, good)
    with pytest.raises(
        ValueError,
        match="out must be of a call of this module, got one of a module with other options",
    ):
        build("smm", temperature=0.3).backward(out, good)


def test_starts_at_masked_inputs(smm):
    module, x, _ = smm
    mask = np.ones((2, 37), bool)
    mask[1, 4] = False
    init = {"indices": np.array([[0, 1, 4], [4, 1, 0]]), "log_std": np.zeros((2, 3, 7))}
    with pytest.raises(
        ValueError,
        match=r"rows of real inputs, from 0 to 36 and not masked, got 4 at index \(1, 0\)",
    ):
        module(x, init=init, mask=mask)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 65)])
def test_odd_numbers_work(name, shape):
    """One input, more slots than inputs, one more input than a block."""
    module = build(name)
    x, call = inputs(module, *shape)
    out = module(x, attention=True, **call)
    assert np.allclose(out.attention.sum(-1), attention_total(module))
    assert all(np.isfinite(g).all() for g in module.backward(out, np.ones_like(out.slots)).values())


def test_indices_need_the_width_of_slots():
    module = build("sa-qkv-wide")
    x, call = inputs(module)
    call["init"] = {"indices": np.zeros((2, 3), int)}
    with pytest.raises(KeyError, match=r"init must hold \['slots'\], got \['indices'\]"):
        module(x, **call)
    torch = pytest.importorskip("torch")
    from smm_py.torch import SlotAttention

    with pytest.raises(KeyError, match=r"init must hold \['slots'\], got \['indices'\]"):
        SlotAttention(**module.options)(torch.tensor(x), {"indices": torch.zeros(2, 3).long()})
