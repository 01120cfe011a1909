"""Options of other implementations, against plain formulas, and their state dicts.

With SMM_PEERS=FOLDER, also against what their own code computed (peer_files.py).
"""

import contextlib
import copy
import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, build, inputs

torch = pytest.importorskip("torch")
import plain_torch  # noqa: E402
from peer_files import MOST, errors  # noqa: E402

import smm_py.torch as twins  # noqa: E402
from smm_py.torch import compat  # noqa: E402
from smm_py.torch._peers import PEERS  # noqa: E402

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


def twin_results(module, x, call, masks, lean=True):
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
    with twins.force_lean() if lean else contextlib.nullcontext():
        out = torch.func.functional_call(Run(), named)
    return out._asdict(), leaves


def compare(name, gradient, lean):
    """Every output and gradient with those of the plain formulas."""
    module = build(name, gradient=gradient, num_iters=3)
    x, call = inputs(module, masks=True)
    masks = {n: torch.tensor(call[n]) for n in ("mask", "slot_mask")}
    expected, theirs = plain_results(module, x, call, masks)
    got, ours = twin_results(module, x, call, masks, lean)
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


@pytest.mark.filterwarnings("ignore:.*which is zero with gradient")
@pytest.mark.parametrize("gradient", ["full", "bilevel"])
@pytest.mark.parametrize("name", LEARNED)
def test_plain_formulas(name, gradient):
    """The form in PyTorch operations; with it, the core's is compared elsewhere."""
    if name.startswith("reference-fair") and gradient == "bilevel":
        gradient = "implicit"  # which is another one there
    compare(name, gradient, lean=True)


@pytest.mark.parametrize(
    "name, gradient",
    [
        ("reference-fair", "implicit"),
        ("reference-fair-mlp-not-last", "implicit"),
        ("reference-bias", "bilevel"),
        ("reference-no-gru-gelu", "bilevel"),
        ("sa-mlp-not-last", "bilevel"),
        ("smm-mlp-not-last", "bilevel"),
    ],
)
def test_plain_formulas_of_the_core(name, gradient):
    """Gradients whose last step is unlike others, or that also pass through the prior."""
    compare(name, gradient, lean=False)


@pytest.mark.skipif(not FILES, reason="SMM_PEERS names no folder of their results")
@pytest.mark.filterwarnings("ignore:.*which is zero with gradient")
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


# a module of ours that each can hold, at odd sizes, and the options of theirs that it takes
OURS = {
    "lucidrains": (dict(input_dim=6), {}),
    "lucidrains-multihead": (
        dict(input_dim=6, qkv_dim=9, heads=3, scale=6**-0.5),
        dict(heads=3, version="1.4"),
    ),
    "evelinehong": (dict(input_dim=6), {}),
    "slate": (dict(heads=3), dict(heads=3)),
    "spot": (dict(gradient="bilevel"), {}),
    "oclf": (dict(qkv_dim=4, heads=2, slot_mlp="never", hidden_dim=128), dict(heads=2)),
    "videosaur": (dict(qkv_dim=9, hidden_dim=24), {}),
    "bo-qsa": (
        dict(input_dim=6, eps=0.5, gradient="implicit"),
        dict(eps=0.5, truncate="fixed-point"),
    ),
    "bo-qsa-sa": (dict(input_dim=6), {}),
    "vq-vfm-ocl": (dict(eps=1e-5), {}),
    "dias": (dict(eps=1e-5, gradient="bilevel"), dict(truncate="bi-level")),
    "update-normalization": (dict(update="sum"), dict(update="none")),
    "airi-fair": (dict(input_dim=6), {}),
}


def theirs(peer):
    """A state dict of theirs, the module that it comes from, and their options."""
    own, options = OURS.get(peer, ({}, {}))
    row = PEERS[peer]
    sizes = dict(dim=6, num_slots=4, num_iters=2, hidden_dim=7, dtype="float64", seed=1)
    sizes |= {} if peer == "airi-fair" else dict(input_dim=5)
    module = row.kind(**{"gradient": "full", **sizes, **row.options, **own})
    return compat.to_peer(peer, module), module, options


@pytest.mark.parametrize("peer", PEERS)
def test_state_dicts_come_back(peer):
    """Bit for bit, into a module with the same options; from a larger model's state dict too."""
    weights, module, options = theirs(peer)
    assert all(v.is_contiguous() for v in weights.values())
    taken = compat.from_peer(peer, weights, num_slots=4, num_iters=2, **options)
    assert repr(taken) == repr(module)
    back = compat.to_peer(peer, copy.deepcopy(taken))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[n], v) and back[n].dtype == v.dtype for n, v in weights.items())
    model = {"head.weight": torch.zeros(2), **{f"model.slots.{n}": v for n, v in weights.items()}}
    inner = compat.from_peer(peer, model, num_slots=4, num_iters=2, **options)
    assert all(torch.equal(a, b) for a, b in zip(inner.parameters(), taken.parameters()))
    x = torch.rand(2, 9, module.input_dim, dtype=torch.float64)
    init = {n: torch.rand(2, 4, 6, dtype=torch.float64) for n in module._spec.state_names}
    with twins.force_lean():
        expected, got = (m(x, init) for m in (module, taken))
    # what theirs cannot tell of the sign of zero or the order of sums is not in a result
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("peer", PEERS)
def test_wrong_state_dicts(peer):
    """A missing, an unknown and a misshapen entry, each of them, by name."""
    weights, _, options = theirs(peer)

    def take(changed):
        compat.from_peer(peer, changed, num_slots=4, **options)

    for name, value in weights.items():
        with pytest.raises(KeyError, match=f"missing: .*'{name}'"):
            take({n: v for n, v in weights.items() if n != name})
        with pytest.raises(ValueError, match=f"{name} must have shape"):
            take({**weights, name: value[..., :-1]})
        with pytest.raises(ValueError, match=f"{name} must have shape"):
            take({**weights, name: value[None]})
        with pytest.raises(TypeError, match=f"{name} must be torch.float64|must be torch.float32"):
            take({**weights, name: value.float()})
    with pytest.raises(KeyError, match="has no parameter 'to_x.weight'"):
        take({**weights, "to_x.weight": torch.zeros(1)})
    with pytest.raises(TypeError, match=f"{next(iter(weights))} must be a tensor, got ndarray"):
        take({n: v.numpy() for n, v in weights.items()})


def test_wrong_arguments():
    weights, module, _ = theirs("spot")
    with pytest.raises(ValueError, match="no implementation 'spots' is known; did you mean spot"):
        compat.from_peer("spots", weights, num_slots=3)
    with pytest.raises(TypeError, match="peer must be a str"):
        compat.to_peer(3, module)
    with pytest.raises(TypeError, match="state_dict must be a mapping, got list"):
        compat.from_peer("spot", list(weights), num_slots=3)
    with pytest.raises(TypeError, match="spot has no option 'truncat'; did you mean truncate"):
        compat.from_peer("spot", weights, num_slots=3, truncat="none")
    with pytest.raises(ValueError, match="truncate must be one of 'none', .*got 'all'"):
        compat.from_peer("spot", weights, num_slots=3, truncate="all")
    with pytest.raises(ValueError, match="heads must divide dim=6, got 4"):
        compat.from_peer("spot", weights, num_slots=3, heads=4)
    with pytest.raises(TypeError, match="num_iters must be an int"):
        compat.from_peer("spot", weights, num_slots=3, num_iters="3")
    with pytest.raises(ValueError, match="joint_softmax must be False for bo-qsa-sa, got True"):
        compat.to_peer("bo-qsa-sa", module)
    with pytest.raises(TypeError, match="must be a smm_py.torch.SlotMixture for airi-fair"):
        compat.to_peer("airi-fair", module)
    narrow = twins.SlotAttention(6, qkv_dim=3, joint_softmax=True, head_attention="sum")
    with pytest.raises(ValueError, match="qkv_dim must be dim=6 for spot, got 3"):
        compat.to_peer("spot", narrow)
    biased = dict(qkv_bias=True, gradient="full")
    with pytest.raises(ValueError, match="input_dim must be dim=6 for lucidrains, got 5"):
        compat.to_peer("lucidrains", twins.SlotAttention(6, input_dim=5, **biased))
    with pytest.raises(ValueError, match="scale must be 0.57735 or 0.408248 for .*, got 0.3"):
        sharp = twins.SlotAttention(6, heads=2, combine_heads=True, scale=0.3, **biased)
        compat.to_peer("lucidrains-multihead", sharp)
    with pytest.raises(ValueError, match=r"norm_inputs.weight must have shape \(1,\), got \(\)"):
        compat.from_peer("spot", {n: torch.zeros(()) for n in weights}, num_slots=3)
    with pytest.raises(KeyError, match="spot has no parameter '1' here"):
        compat.from_peer("spot", {**weights, 1: torch.zeros(1)}, num_slots=3)
    two = {f"{prefix}.{n}": v for prefix in "ab" for n, v in weights.items()}
    with pytest.raises(ValueError, match="one such module, got 2: 'a.', 'b.'"):
        compat.from_peer("spot", two, num_slots=3)


def test_a_standard_deviation_comes_back():
    """Whatever its logarithm rounds to, until the module is trained; it must have one."""
    weights, _, _ = theirs("evelinehong")
    weights["slots_sigma"] = torch.rand(1, 1, 6, dtype=torch.float64) + 1e-3
    module = compat.from_peer("evelinehong", weights, num_slots=3)
    assert torch.equal(compat.to_peer("evelinehong", module)["slots_sigma"], weights["slots_sigma"])
    with torch.no_grad():
        module.slots_logsigma += 1
    expected = weights["slots_sigma"] * np.e
    torch.testing.assert_close(compat.to_peer("evelinehong", module)["slots_sigma"], expected)
    assert set(module.state_dict()) == set(dict(module.named_parameters()))
    weights["slots_sigma"][0, 0, 3] = 0
    with pytest.raises(ValueError, match="slots_sigma must be above 0, .*got 0.0"):
        compat.from_peer("evelinehong", weights, num_slots=3)


def test_what_acts_between_frames_is_left_out():
    """STEVE's slot module holds its predictor too."""
    weights, _, _ = theirs("steve")
    whole = {**weights, "predictor.blocks.0.attn_layer_norm.weight": torch.ones(6)}
    module = compat.from_peer("steve", {f"savi.{n}": v for n, v in whole.items()}, num_slots=4)
    assert compat.to_peer("steve", module).keys() == weights.keys()


def test_the_implicit_gradient_of_oclf_takes_a_step_more():
    weights, _, options = theirs("oclf")
    module = compat.from_peer("oclf", weights, num_slots=4, gradient="implicit", **options)
    assert (module.num_iters, module.gradient) == (4, "implicit")


def test_an_eps_of_zero():
    """Is as good as none: far below the rounding of any weight, in either precision."""
    weights, _, options = theirs("oclf")
    module = compat.from_peer("oclf", weights, num_slots=4, eps=0, **options)
    assert 0 < module.eps < 1e-37 and module.float().eps == module.eps


def test_rows_for_each_slot_have_no_place():
    module = twins.SlotAttention(6, 3, hidden_dim=7, qkv_bias=True, gradient="full")
    module.load_state_dict({**module.state_dict(), "slots_mu": torch.zeros(3, 6)})
    with pytest.raises(ValueError, match="slots_mu must be one for all slots for lucidrains"):
        compat.to_peer("lucidrains", module)


def package(name):
    """A class of the package slot-attention, without the packages that the whole imports."""
    spec = importlib.util.find_spec("slot_attention")
    if spec is None:
        pytest.skip("needs the package slot-attention")
    whole = importlib.util.module_from_spec(spec)  # its own code does not run
    sys.modules.setdefault("slot_attention", whole)
    return getattr(pytest.importorskip(f"slot_attention.{name[0]}"), name[1])


CLASSES = [
    (("slot_attention", "SlotAttention"), {}, "lucidrains"),
    (
        ("multi_head_slot_attention", "MultiHeadSlotAttention"),
        dict(heads=3, dim_head=5),
        "lucidrains-multihead",
    ),
]


@pytest.mark.parametrize("name, options, peer", CLASSES, ids=lambda value: str(value)[:12])
def test_the_package_itself(name, options, peer):
    """The same slots and gradients from the same noise, state dicts in both directions."""
    arguments = dict(num_slots=3, dim=6, iters=2, hidden_dim=4, eps=1e-6, **options)
    their = package(name)(**arguments).double()
    own = getattr(compat, name[1])(**arguments).double()
    own.load_state_dict(their.state_dict())
    their.load_state_dict(own.state_dict())
    for attribute in ("dim", "num_slots", "iters", "eps", "scale"):
        assert getattr(own, attribute) == getattr(their, attribute)
    assert own.norm_pre_ff.weight.shape == (6,)
    x = torch.rand(2, 9, 6, dtype=torch.float64)
    found = []
    for module in (their, own):
        torch.manual_seed(0)
        slots = module(x, num_slots=4)
        slots.square().sum().backward()
        grads = {n: p.grad for n, p in module.named_parameters()}
        found.append((slots, {n.replace("norm_pre_ff", "norm_mlp"): g for n, g in grads.items()}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-10, atol=1e-10)
    for n, grad in found[0][1].items():
        got = found[1][1][n].view(grad.shape)
        torch.testing.assert_close(got, grad, rtol=1e-9, atol=1e-9, msg=lambda m, n=n: f"{n}: {m}")
    taken = compat.from_peer(
        peer,
        their.state_dict(),
        num_slots=3,
        num_iters=2,
        eps=1e-6,
        **{n: v for n, v in options.items() if n == "heads"},
    )
    assert taken.options == {**own.options, "dtype": "float64"}


def test_the_packages_adaptive_wrapper():
    wrapper = package(("adaptive_slot_wrapper", "AdaptiveSlotWrapper"))
    for own in (compat.MultiHeadSlotAttention(3, 6, heads=2), compat.SlotAttention(3, 6)):
        slots, keep = wrapper(own)(torch.rand(2, 9, 6), num_slots=4)
        assert slots.shape == (2, 4, 6) and keep.shape == (2, 4)
        torch.testing.assert_close(keep, keep.round())


def test_multiple_heads(tmp_path):
    """The drop-in's scales by version, its names, and its files."""
    module = compat.MultiHeadSlotAttention(3, 6, heads=2, dim_head=4, hidden_dim=4, iters=2)
    old = compat.MultiHeadSlotAttention(3, 6, heads=2, dim_head=4, version="1.4")
    assert (module.scale, old.scale) == (0.5, 6**-0.5)
    state = module.state_dict()
    assert state["combine_heads.weight"].shape == (6, 8) and "norm_pre_ff.bias" in state
    assert state["slots_mu"].shape == (1, 1, 6)
    for saved in (module, old):
        saved.save(tmp_path / "m.safetensors")
        loaded = compat.MultiHeadSlotAttention.load(tmp_path / "m.safetensors")
        assert loaded.options == saved.options
        assert torch.equal(loaded.to_q.weight, saved.to_q.weight)
    with pytest.raises(ValueError, match="heads must be 1 in that package's module, got 2"):
        compat.SlotAttention.load(tmp_path / "m.safetensors")
    torch.set_default_dtype(torch.float64)
    try:
        assert compat.SlotAttention(3, 6).to_q.weight.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with pytest.raises(ValueError, match="iters must be at least 1, got 0"):
        compat.SlotAttention(3, 6, iters=0)
    with pytest.raises(ValueError, match="version must be '1.4' or '1.5', got '2'"):
        compat.MultiHeadSlotAttention(3, 6, version="2")
