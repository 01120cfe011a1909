"""precision="bfloat16": products of linear maps with bfloat16 factors and float sums."""

import numpy as np
import pytest
from cases import everything, inputs

import smm_py

torch = pytest.importorskip("torch")
import smm_py.torch as twins  # noqa: E402
from smm_py.torch import lean  # noqa: E402

SIZES = dict(num_slots=5, num_iters=3, hidden_dim=51, input_dim=19)
MODULES = {
    "smm": (smm_py.SlotMixture, dict(dim=33, qkv_bias=True, **SIZES)),
    "smm-full": (smm_py.SlotMixture, dict(dim=32, gradient="full", **SIZES)),
    "smm-bare": (smm_py.SlotMixture, dict(dim=19, input_mlp=False, **SIZES)),
    "reference": (smm_py.SlotMixture, dict(dim=32, variant="reference", **SIZES)),
    "fair": (smm_py.SlotMixture, dict(dim=32, variant="fair", **SIZES)),
    # one head, whose W_k and W_v are applied to the slots; and too many for that
    "sa": (smm_py.SlotAttention, dict(dim=32, qkv_bias=True, **SIZES)),
    "sa-heads": (smm_py.SlotAttention, dict(dim=16, heads=8, qkv_bias=True, **SIZES)),
}


def problem(name, **options):
    """A module, float32 inputs and a call's arguments."""
    kind, own = MODULES[name]
    own = own | ({"weight_init": "default"} if kind is smm_py.SlotMixture else {})
    module = kind(**own, **options)
    return module, *inputs(module, 3, 150, module.num_slots)


def wide(name):
    """What the same parameters, inputs and gradients give in float64."""
    narrow, x, call = problem(name)
    module = problem(name, dtype="float64")[0]
    module.parameters.update({n: p.astype("float64") for n, p in narrow.parameters.items()})
    call["init"] = {n: v.astype("float64") for n, v in call["init"].items()}
    return everything(module, x.astype("float64"), call)


def errors(found, expected):
    """Relative to the largest gradient, or the output itself: a gradient may be 0 in truth."""
    most = max(np.linalg.norm(v) for n, v in expected.items() if n.startswith("d "))
    return {
        n: np.linalg.norm(found[n] - v) / (most if n.startswith("d ") else np.linalg.norm(v))
        for n, v in expected.items()
    }


@pytest.mark.parametrize("name", MODULES)
def test_products_are_narrow_and_nothing_else(name):
    """Near the float64 results as bfloat16 is, and not as float32 is."""
    expected = wide(name)
    module, x, call = problem(name, precision="bfloat16")
    narrow = errors(everything(module, x, call), expected)
    single = errors(everything(*problem(name)), expected)
    assert max(narrow.values()) < 0.05 and max(single.values()) < 3e-6
    assert narrow["slots"] > 20 * single["slots"]


@pytest.mark.parametrize("name", MODULES)
def test_the_same_bits_on_any_number_of_threads(name):
    module, x, call = problem(name, precision="bfloat16")
    before = smm_py.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            smm_py.set_num_threads(threads)
            found.append(everything(module, x, call))
    finally:
        smm_py.set_num_threads(before)
    for other in found[1:]:
        for key, value in found[0].items():
            assert np.array_equal(value, other[key]), key


def twin(name, **options):
    kind, own = MODULES[name]
    own = own | ({"weight_init": "default"} if kind is smm_py.SlotMixture else {})
    module = getattr(twins, kind.__name__)(**own, seed=0, **options)
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.standard_normal((3, 150, module.input_dim)).astype("float32"))
    init = module.initial_state(x, generator=torch.Generator().manual_seed(0))
    return module, x, {n: v.detach() for n, v in init.items()}


def step(module, x, init):
    """Slots and the gradients of x and of every parameter."""
    x = x.clone().requires_grad_()
    module.zero_grad(set_to_none=True)
    slots = module(x, init)
    slots.square().sum().backward()
    grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return {"slots": slots.detach(), "x": x.grad, **grads}


@pytest.mark.parametrize("name", MODULES)
def test_autocast_is_followed(name):
    follows, x, init = twin(name)
    narrow, single = twin(name, precision="bfloat16")[0], twin(name, precision="float32")[0]
    expected, plain = step(narrow, x, init), step(single, x, init)
    with torch.autocast("cpu", torch.bfloat16):
        followed, kept = step(follows, x, init), step(single, x, init)
    for key, value in expected.items():
        assert torch.equal(followed[key], value), key
        assert torch.equal(kept[key], plain[key]), key
    assert not torch.equal(expected["slots"], plain["slots"])
    assert torch.equal(step(follows, x, init)["slots"], plain["slots"])


@pytest.mark.parametrize("name", [n for n in MODULES if n != "sa"])  # W_k, W_v: other roundings
def test_both_forms_round_alike(name):
    """Where a rounding falls on the other side, the two differ by a bfloat16's last digit there."""
    module, x, init = twin(name, precision="bfloat16")
    expected = step(module, x, init)
    with twins.force_lean():
        found = step(module, x, init)
        plain = step(twin(name, precision="float32")[0], x, init)
    for key in ("slots", "x"):
        error = (found[key] - expected[key]).norm() / expected[key].norm()
        rounding = (plain[key] - expected[key]).norm() / expected[key].norm()
        assert error < rounding / 3, key


def test_a_narrow_linear_map():
    """Of inputs that bfloat16 holds, products are exact, and so are their gradients."""
    x, weight = torch.randn(4, 7, 6).bfloat16().float(), torch.randn(5, 6).bfloat16().float()
    found, expected = [], []
    for results, function in (
        (found, lean._NarrowLinear.apply),
        (expected, torch.nn.functional.linear),
    ):
        a, b, c = (t.clone().requires_grad_() for t in (x, weight, torch.ones(5)))
        y = function(a, b, c)
        y.backward(torch.ones_like(y))
        results += [y.detach(), a.grad, b.grad, c.grad]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_error_beside_autocast():
    """At most 1.5 times that of the same formulas in PyTorch under autocast, against float64."""
    module, x, init = twin("smm-full", precision="bfloat16")
    exact = twins.SlotMixture(**module.options | {"dtype": "float64", "precision": None})
    exact.load_state_dict({n: p.double() for n, p in module.state_dict().items()})
    double = {n: v.double() if v.is_floating_point() else v for n, v in init.items()}
    expected = step(exact, x.double(), double)
    plain = twins.SlotMixture(**module.options | {"precision": "float32"})
    plain.load_state_dict(module.state_dict())

    class Plain(lean.Formulas):
        """Its products under autocast, whose results are bfloat16 too."""

        def __init__(self, spec, x, p, mask):
            with torch.autocast("cpu", torch.bfloat16):
                super().__init__(spec, x, p, mask)
            self.keys, self.values = self.keys.float(), self.values.float()
            self.key_centre, self.value_centre = self._mean(self.keys), self._mean(self.values)

    plain.formulas = Plain
    ours, theirs = step(module, x, init), step(plain, x, init)
    for key in ("slots", "x", "mlp_input.0.weight", "to_k.weight"):
        error, other = (
            (found[key].double() - expected[key]).norm() / expected[key].norm()
            for found in (ours, theirs)
        )
        assert error <= 1.5 * other, (key, error, other)


def test_float64_has_no_such_products():
    with pytest.raises(ValueError, match='precision must be "float32" where dtype="float64"'):
        smm_py.SlotMixture(dim=8, precision="bfloat16", dtype="float64")
    module = twins.SlotMixture(dim=8, precision="bfloat16")
    with pytest.raises(TypeError, match="module must be of float32"):
        module.double()(torch.rand(1, 9, 8).double())


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)  # the compiler's own
def test_graphs_follow_autocast():
    module, x, init = twin("smm")
    compiled = torch.compile(module, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        expected = module(x, init)
        assert torch.equal(compiled(x, init), expected)
    assert not torch.equal(compiled(x, init), expected)
