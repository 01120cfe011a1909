"""The PyTorch twins: both paths against the vectors, and what PyTorch expects of a module."""

import contextlib
import copy
import doctest
import pickle
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from processes import ROOT, TORCHRUN, run_python  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402
from torch.nn.utils import prune  # noqa: E402
from vectors import FILES, read  # noqa: E402

import smm_py  # noqa: E402
import smm_py.torch as st  # noqa: E402
from smm_py.torch import _modules, _ops, _peers, compat  # noqa: E402

KINDS = {
    "sa": (st.SlotAttention, dict(dim=8, hidden_dim=9, input_dim=5)),
    "sa-heads": (st.SlotAttention, dict(dim=8, hidden_dim=9, input_dim=5, heads=2, qkv_bias=True)),
    "smm": (st.SlotMixture, dict(dim=8, hidden_dim=9, input_dim=5, variant="paper")),
    "stable": (st.SlotMixture, dict(dim=8, hidden_dim=9, input_dim=5)),
    "slot-norm": (
        st.SlotMixture,
        dict(dim=8, hidden_dim=9, input_mlp=False, slot_norm=True, reduce=False, variant="paper"),
    ),
    "reference": (st.SlotMixture, dict(dim=8, hidden_dim=9, input_dim=5, variant="reference")),
    "kmeans": (st.KMeans, dict(dim=5)),
    "gmm": (st.GaussianMixture, dict(dim=5)),
}


def build(name, **changes):
    kind, options = KINDS[name]
    torch.manual_seed(0)
    return kind(num_slots=3, num_iters=2, **{**options, **changes})


def inputs(module, batch=2, count=20, slots=3, seed=0):
    spec = module._spec
    g = torch.Generator().manual_seed(seed)
    dtype = _modules.DTYPES[spec.dtype or "float32"]
    x = torch.randn(batch, count, spec.input_dim, dtype=dtype, generator=g)
    init = {
        n: 0.5 * torch.randn(batch, slots, spec.dim, dtype=dtype, generator=g)
        for n in spec.state_names
    }
    return x, init


def path(lean):
    return _modules.force_lean() if lean else contextlib.nullcontext()


@pytest.mark.filterwarnings("ignore:init.*requires a gradient:UserWarning")
@pytest.mark.parametrize("lean", [False, True], ids=["core", "lean"])
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_vectors(file, lean):
    kind, options, groups = read(file, st)
    module = kind(**options, dtype=torch.float64)
    module.load_state_dict({n: torch.tensor(a) for n, a in groups["p"].items()})
    given = {n: torch.tensor(a) for n, a in groups["in"].items()}
    x = given["x"].requires_grad_()
    init = {n: given[n].requires_grad_() for n in ("slots", "mean", "log_std") if n in given}
    masks = {n: given[n].bool() for n in ("mask", "slot_mask") if n in given}
    with path(lean):
        result = module.run(x, init, return_attention=True, **masks)
    (result.slots * given["d_slots"]).sum().backward()
    grads = {
        "x": x.grad,
        **{n: v.grad for n, v in init.items()},
        **{n: p.grad for n, p in module.named_parameters()},
    }
    pairs = [(n, getattr(result, n).detach(), a) for n, a in groups["out"].items()]
    for name, expected in groups["g"].items():
        ours = torch.zeros(expected.shape) if grads[name] is None else grads[name]
        pairs.append(("d " + name, ours, expected))
    for name, ours, expected in pairs:
        # norm_slots.bias of Slot Attention has a gradient of 0
        size = max(np.abs(expected).max(), 1e-3)
        assert np.abs(ours.numpy() - expected).max() <= 1e-9 * size, name


@pytest.mark.filterwarnings("ignore:init.*requires a gradient:UserWarning")
@pytest.mark.parametrize("gradient", ["full", "implicit", "straight-through", "bilevel"])
@pytest.mark.parametrize("name", KINDS)
def test_lean_equals_core(name, gradient):
    """Float32, masks, starts at inputs, attention's gradient: 1e-5."""
    module = build(name, gradient=gradient)
    x, init = inputs(module)
    mask = torch.rand(2, 20, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[:, :5] = True
    slot_mask = torch.tensor([[True, False, True], [True, True, True]])
    first = module._spec.state_names[0]
    for indices in (False, True):
        state = {n: v.clone().requires_grad_() for n, v in init.items()}
        if indices:
            state[first] = None
            state = {
                "indices": torch.tensor([[0, 1, 2], [4, 3, 1]]),
                **{n: v for n, v in state.items() if n != first},
            }
        results = []
        for lean in (False, True):
            leaves = [
                x.clone().requires_grad_(),
                *(v for n, v in state.items() if n != "indices"),
                *module.parameters(),
            ]
            with path(lean):
                slots, attention = module(leaves[0], state, mask, slot_mask, return_attention=True)
            weight = torch.linspace(-1, 1, attention.numel()).view_as(attention)
            loss = (slots**2).sum() + (attention * weight).sum()
            grads = torch.autograd.grad(
                loss, [p for p in leaves if p.requires_grad], allow_unused=True
            )
            results.append(
                [
                    slots.detach(),
                    attention.detach(),
                    *(torch.zeros(()) if g is None else g for g in grads),
                ]
            )
        scale = max(float(a.abs().max()) for a in results[0])
        for a, b in zip(*results):
            assert float((a - b).abs().max()) <= 1e-5 * max(scale, 1), (name, indices)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_attention_alone(name):
    module = build(name, gradient="full")
    x, init = inputs(module)
    grads = []
    for part in (None, 0):
        leaf = x.clone().requires_grad_()
        slots, attention = module(leaf, init, return_attention=True)
        loss = (attention * torch.linspace(-1, 1, attention.numel()).view_as(attention)).sum()
        grads.append(
            torch.autograd.grad(loss if part is None else loss + part * slots.sum(), leaf)[0]
        )
    assert torch.equal(*grads) and grads[0].abs().max() > 0


@pytest.mark.parametrize("name", KINDS)
def test_gradcheck(name):
    module = build(name, dtype="float64", gradient="full")
    x, init = inputs(module, count=7)
    params = [
        p
        for n, p in module.named_parameters()
        if n
        not in (
            "mean_mu",
            "mean_logsigma",
            "logstd_mu",
            "logstd_logsigma",
            "slots_mu",
            "slots_logsigma",
        )
    ]

    def function(x, *rest):
        state = dict(zip(init, rest))
        return module(x, state, return_attention=True)

    leaves = [x.requires_grad_(), *(v.requires_grad_() for v in init.values())]
    assert torch.autograd.gradcheck(function, (*leaves, *params), atol=1e-6)


@pytest.mark.parametrize("name", ["sa-heads", "smm", "kmeans"])
def test_opcheck(name):
    module = build(name, dtype="float32")
    x, init = inputs(module)
    names = module._spec.state_names
    params = [
        p.detach() for n, p in module.named_parameters() if "mu" not in n and "sigma" not in n
    ]
    args = [
        x,
        params,
        init[names[0]],
        init.get("log_std"),
        torch.full((2, 3), 0.3) if "log_std" in init else None,
        None,
        None,
        None,
        None,
        _ops.config_text(module._spec),
        2,
    ]
    for wanted in ((False, False, False), (True, True, True)):
        torch.library.opcheck(torch.ops.smm_py.forward, (*args, *wanted, True))
    saved = torch.ops.smm_py.forward(*args, True, False, False, True)[-1]
    d_slots = torch.ones(2, 3, module._spec.slot_dim)
    torch.library.opcheck(torch.ops.smm_py.backward, (*args, saved, d_slots, *[None] * 5))


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)  # the compiler's own
def test_compile():
    """Without graph breaks, with dynamic shapes, forward and backward."""
    module = build("stable")
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for batch, count in ((2, 20), (3, 25)):
        x, _ = inputs(module, batch, count)
        init = {
            "indices": torch.arange(3).expand(batch, 3).contiguous(),
            "log_std": torch.zeros(batch, 3, 8),
        }
        expected, got = module(x, init), compiled(x, init)
        assert torch.equal(expected, got)
        results = []
        for slots in (expected, got):
            module.zero_grad()
            (slots**2).sum().backward()
            grads = [p.grad.clone() for p in module.parameters() if p.grad is not None]
            results.append(grads)
        assert all(map(torch.equal, *results)) and len(grads) > 15
    assert compiled(x).shape == (3, 3, 8)  # draws its state inside


def test_graphs_of_another_core_are_not_taken_for_ours(monkeypatch):
    """Graphs are cached on disk: the text of a configuration changes with what the core saves."""
    spec = build("stable")._spec
    text = _ops.config_text(spec)
    assert _ops._spec(text) == spec and _ops.config_text(spec) == text
    rule = {**_ops._core.saved_rule(spec.config, 2, 2), "most": 8}
    monkeypatch.setattr(_ops._core, "saved_rule", lambda *arguments: rule)
    assert _ops.config_text(spec) != text and _ops._spec(_ops.config_text(spec)) == spec


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)  # the exporter's own
def test_export():
    module = build("sa").eval()
    x, init = inputs(module)
    program = torch.export.export(module, (x, init), strict=False)
    assert torch.equal(program.module()(x, init), module(x, init))


@pytest.mark.parametrize(
    "name, options",
    [
        ("smm", {}),
        ("smm", {"recompute": True}),
        ("slot-norm", {}),
        ("reference", {}),
        ("sa-heads", {}),
        ("kmeans", {}),
    ],
)
def test_shapes_of_what_is_saved(name, options):
    """torch.compile is told the sizes that the core has, below and above the most it saves."""
    spec = build(name, **options)._spec
    for sizes in (
        (1, 1, 3),
        (5, 64, 3),
        (2, 65, 20),
        (1, 300_000, 5),
        (4, 80_000, 5),
        (1, 500_000, 5),
        (2_000, 1_000, 5),
        (20_000, 1_000, 5),
    ):
        expected = smm_py._core.saved_size(spec.config, *sizes, 4)
        assert _ops._saved_size(spec, *sizes, 4) == expected > 0


@pytest.mark.parametrize("hidden_dim", [50_000, 100_000])
def test_shapes_of_what_is_saved_of_wide_layers(hidden_dim):
    """So wide that two blocks of inputs, or one, are more than is saved."""
    spec = build("smm", hidden_dim=hidden_dim)._spec
    for sizes in ((1, 9, 3), (2, 9, 3), (1, 65, 3)):
        assert _ops._saved_size(spec, *sizes, 4) == smm_py._core.saved_size(spec.config, *sizes, 4)


def test_functional_call():
    module = build("smm")
    x, init = inputs(module)
    other = {n: p * 1.1 for n, p in module.named_parameters()}
    got = torch.func.functional_call(module, other, (x, init))
    twin = copy.deepcopy(module)
    twin.load_state_dict(other)
    assert torch.equal(got, twin(x, init)) and not torch.equal(got, module(x, init))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_autocast_takes_and_gives_its_types(precision):
    module = build("smm", precision=precision)
    x, init = inputs(module)
    expected = module(x.bfloat16().float(), init)
    with torch.autocast("cpu", torch.bfloat16):
        got = module(x.bfloat16(), init)
        assert torch.equal(
            module(x.bfloat16().float(), {n: v.bfloat16() for n, v in init.items()}),
            module(x.bfloat16(), {n: v.bfloat16().float() for n, v in init.items()}),
        )
        for other in (x.long(), x > 0, x.double()):
            with pytest.raises(
                TypeError, match=f"x must be a torch.float32 tensor, got {other.dtype}"
            ):
                module(other, init)
    assert got.dtype == torch.float32 and torch.equal(got, expected)
    with pytest.raises(TypeError, match="x must be a torch.float32 tensor, got torch.bfloat16"):
        module(x.bfloat16(), init)


def test_submodules_may_be_replaced():
    module = build("smm")
    x, init = inputs(module)
    before = module(x, init)
    module.to_k = torch.nn.Linear(8, 8, bias=False)
    after = module(x, init)
    assert not torch.equal(after, before)
    after.sum().backward()
    assert module.to_k.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("lean", [False, True], ids=["core", "lean"])
def test_more_slots_than_inputs_where_few_are_active(lean):
    module = build("stable")
    x, _ = inputs(module, count=4)
    active = torch.arange(6).expand(2, -1) < 3
    with path(lean):
        slots = module(x, slot_mask=active, num_slots=6)
        assert slots.isfinite().all() and len(slots[0, :3].unique(dim=0)) == 3
        with pytest.raises(ValueError, match="num_slots must not exceed the real inputs"):
            module(x, slot_mask=torch.ones(2, 6, dtype=torch.bool), num_slots=6)


def test_slots_on_meta_have_shapes_alone():
    with torch.device("meta"):
        module = build("smm")
        assert next(module.parameters()).device.type == "meta"
    x, init = inputs(build("smm"))
    assert module(x.to("meta"), {n: v.to("meta") for n, v in init.items()}).shape == (2, 3, 8)
    with pytest.raises(
        ValueError, match="x must be on meta as the parameter norm_input.weight is, got cpu"
    ):
        module(x, init)
    with pytest.raises(ValueError, match=r"init\['mean'\] must be on cpu as x is, got meta"):
        build("smm")(x, {**init, "mean": init["mean"].to("meta")})


def test_states_of_each_slot_come_from_files(tmp_path):
    """The start's parameters may have a row for each slot, as in NumPy; the file serves both."""
    safetensors = pytest.importorskip("safetensors.torch")
    of_numpy = smm_py.SlotAttention(dim=8, num_slots=3)
    rows = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    of_numpy.parameters["slots_mu"] = rows
    of_numpy.parameters["slots_logsigma"] = np.full((3, 8), -20, np.float32)
    of_numpy.save(tmp_path / "m.safetensors")
    module = st.SlotAttention(dim=8, num_slots=3)
    module.load_state_dict(safetensors.load_file(tmp_path / "m.safetensors"))
    drawn = module.initial_state(torch.zeros(2, 9, 8))["slots"].detach()
    assert np.allclose(drawn, rows, atol=1e-6) and module.slots_mu.requires_grad
    with pytest.raises(
        ValueError, match="num_slots must be 3, as slots_mu has one row for each slot, got 4"
    ):
        module(torch.zeros(2, 9, 8), num_slots=4)
    before = module.slots_mu.detach().clone()
    for wrong in (torch.zeros(8, device="meta"), [0.0] * 8):
        with contextlib.suppress(RuntimeError, NotImplementedError):
            module.load_state_dict({"slots_mu": wrong}, strict=False)
        assert torch.equal(module.slots_mu, before)
    module.load_state_dict(st.SlotAttention(dim=8, num_slots=3).state_dict())
    assert module.slots_mu.shape == (8,)


def test_parameters_of_another_shape_or_type_are_named():
    x = torch.zeros(2, 9, 8)
    for shape in ((1,), (2, 3, 8), (3, 1)):
        module = st.SlotAttention(dim=8, num_slots=3)
        module.slots_mu = torch.nn.Parameter(torch.zeros(shape))
        with pytest.raises(
            ValueError, match=r"slots_mu must have shape \(8,\) or \(3, 8\), got \(" + str(shape[0])
        ):
            module(x)
    module = st.SlotAttention(dim=8, num_slots=3)
    module.to_q.double()
    message = (
        "the parameter to_q.weight must be a torch.float32 tensor as the others are, got torch.f"
    )
    with pytest.raises(TypeError, match=message):
        module(x)


def test_options_of_one_precision():
    module = st.KMeans(dim=4, eps=1e-40, dtype="float64")
    assert module(torch.rand(1, 9, 4, dtype=torch.float64)).isfinite().all()
    mixture = st.SlotMixture(dim=4, temperature=1e-40, dtype="float64").float()
    with pytest.raises(
        TypeError, match="the module must be of float64, its parameters are torch.float32"
    ):
        mixture(torch.rand(1, 11, 4))


@pytest.mark.parametrize("name", KINDS)
def test_initial_states_are_those_of_a_call(name):
    """Under autocast too; and what a call refuses is refused."""
    module = build(name)
    x, init = inputs(module)

    def generator():
        return torch.Generator().manual_seed(3)

    with torch.autocast("cpu", torch.bfloat16):
        low = x.bfloat16()
        state = module.initial_state(low, generator=generator())
        assert all(value.dtype in (torch.float32, torch.int64) for value in state.values())
        assert torch.equal(module(low, generator=generator()), module(low, state))
    refused = [
        (x[:, :0], ValueError, "at least one input of each image"),
        (x[..., 1:], ValueError, "x must have shape"),
        (x.to(torch.complex64), TypeError, "x must be a torch.float"),
    ]
    if name not in ("kmeans", "gmm"):  # which take these
        refused += [
            (x[0], ValueError, "x must have shape"),
            (x.double(), TypeError, "x must be a torch.float32 tensor"),
        ]
    for wrong, error, match in refused:
        with pytest.raises(error, match=match):
            module.initial_state(wrong)
    with pytest.raises(TypeError, match="generator must be a torch.Generator"):
        module(x, init, generator="abc")
    with pytest.raises(TypeError, match="num_slots must be an int, got 3.0"):
        module(x, init, num_slots=3.0)


@pytest.mark.parametrize("name", KINDS)
def test_copies_and_files(name, tmp_path):
    module = build(name)
    x, init = inputs(module)
    expected = module(x, init)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x, init), expected) and repr(twin) == repr(module)
    fresh = build(name)
    for p in fresh.parameters():
        p.data.zero_()
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(x, init), expected)
    if name in ("kmeans", "gmm"):  # no parameter tells them another dtype
        return
    assert torch.equal(
        module.double()(x.double(), {n: v.double() for n, v in init.items()})
        .float()
        .round(decimals=3),
        expected.round(decimals=3),
    )


@pytest.mark.parametrize("name", [k for k in KINDS if k not in ("kmeans", "gmm")])
def test_files_serve_both(name, tmp_path):
    """state_dict -> safetensors -> NumPy module: the same slots."""
    safetensors = pytest.importorskip("safetensors.torch")
    module = build(name)
    x, init = inputs(module)
    path_ = tmp_path / "m.safetensors"
    safetensors.save_file(module.state_dict(), path_)
    twin = getattr(smm_py, type(module).__name__).load(path_, **module.options)
    out = twin(x.numpy(), init={n: v.numpy() for n, v in init.items()})
    assert np.array_equal(out.slots, module(x, init).detach().numpy())
    twin.save(path_)
    module.load_state_dict(safetensors.load_file(path_))


GRADED = ("slots", "mean", "variance", "prior", "log_likelihood", "attention", "log_std")
STARTS = ("given", "prior", "indices", "drawn")


def outputs(module, leaves, start, masked):
    """The outputs of one call that carry gradients, by name."""
    x, *states = leaves
    first, *rest = module._spec.state_names
    init = dict(zip((first, *rest), states))
    if start == "prior" and rest:
        init["prior"] = states[2]
    if start == "indices":
        init[first] = None
        init = {"indices": torch.tensor([[0, 1, 2], [4, 3, 1]]), **{n: init[n] for n in rest}}
    generator = torch.Generator().manual_seed(3)
    drawn = {"init": None, "generator": generator} if start == "drawn" else {"init": init}
    found = module.run(x, **drawn, **masks_of(masked), return_attention=True)
    everything = {**found._asdict(), "log_std": found.state.get("log_std")}
    if module._spec.is_reference:
        everything["log_std"] = everything["prior"] = None
    return {n: everything[n] for n in GRADED if everything[n] is not None}


def masks_of(masked):
    if not masked:
        return {}
    mask = torch.rand(2, 20, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[:, :5] = True
    return {"mask": mask, "slot_mask": torch.tensor([[True, False, True], [True, True, True]])}


def leaves_of(module):
    """x, the initial state and a prior, with gradients."""
    x, init = inputs(module)
    prior = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.25, 0.05]], dtype=x.dtype)
    return [t.detach().clone().requires_grad_() for t in (x, *init.values(), prior)]


def weights_of(found):
    g = torch.Generator().manual_seed(8)
    return {n: torch.randn(a.shape, dtype=a.dtype, generator=g) for n, a in found.items()}


@pytest.mark.filterwarnings("ignore:init.*requires a gradient:UserWarning")
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("gradient", ["full", "implicit", "straight-through", "bilevel"])
@pytest.mark.parametrize("name", KINDS)
def test_a_gradient_for_every_output(name, gradient, start, masked):
    """Each alone and all together: the core's values and gradients are the lean form's, to 1e-8."""
    module = build(name, dtype="float64", gradient=gradient)
    results = []
    for lean in (False, True):
        leaves, gradients = leaves_of(module), []
        with path(lean):
            found = outputs(module, leaves, start, masked)
        weight = weights_of(found)
        terms = [(found[n] * weight[n]).sum() for n in found]
        parameters = [p for p in module.parameters() if p.requires_grad]
        for loss in (*terms, sum(terms)):
            own = [None] * (len(leaves) + len(parameters))  # of a constant, such as 1/K
            if loss.requires_grad:
                own = torch.autograd.grad(
                    loss, [*leaves, *parameters], retain_graph=True, allow_unused=True
                )
            gradients += own
        results.append([*(a.detach() for a in found.values()), *gradients])
    assert len(results[0]) == len(results[1])
    for a, b in zip(*results):
        if a is None or b is None:  # no gradient is zeros
            other = b if a is None else a
            assert other is None or float(other.abs().max()) <= 1e-8
            continue
        assert float((a - b).abs().max()) <= 1e-8 * max(1.0, float(a.abs().max()))


@pytest.mark.parametrize("lean", [False, True], ids=["core", "lean"])
@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_every_output_are_finite_differences(name, lean):
    module = build(name, dtype="float64", gradient="full")
    leaves = leaves_of(module)
    parameters = [p for p in module.parameters() if p.requires_grad]

    def loss():
        with path(lean):
            found = outputs(module, leaves, "prior", masked=True)
        weight = weights_of(found)
        # by convention masked inputs get nothing from the attention
        weight["attention"][~masks_of(True)["mask"]] = 0
        return sum((found[n] * weight[n]).sum() for n in found)

    directions = [torch.randn_like(t) for t in (*leaves, *parameters)]
    grads = torch.autograd.grad(loss(), (*leaves, *parameters), allow_unused=True)
    step = 1e-5
    for tensor, direction, grad in zip((*leaves, *parameters), directions, grads):
        difference = 0.0  # of fourth order
        with torch.no_grad():
            before = tensor.clone()
            for steps, share in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
                tensor.copy_(before + steps * step * direction)
                difference += share * float(loss()) / (12 * step)
            tensor.copy_(before)
        slope = 0.0 if grad is None else float((grad * direction).sum())
        assert abs(slope - difference) <= 1e-6 * max(1.0, abs(difference))


@pytest.mark.parametrize("lean", [False, True], ids=["core", "lean"])
@pytest.mark.parametrize("name", KINDS)
def test_going_on_from_a_state(name, lean):
    """a steps and then b are a + b, with their gradients."""
    module = build(name, dtype="float64", gradient="full")
    masked = {"slot_mask": torch.tensor([[True, False, True], [True, True, True]])}
    ends = []
    for parts in ((5,), (2, 3)):
        leaves = leaves_of(module)
        state = dict(zip(module._spec.state_names, leaves[1:]))
        with path(lean):
            for iters in parts:
                found = module.run(leaves[0], state, num_iters=iters, **masked)
                state = found.state
        assert set(state) == set(module._spec.state)
        grads = [torch.zeros(())]
        if name != "reference":  # whose state is a constant
            loss = (found.slots**2).sum() + found.state[module._spec.state[-1]].sum()
            grads = torch.autograd.grad(loss, leaves[:-1])
        ends.append([found.slots, *found.state.values(), *grads])
    for a, b in zip(*ends):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)
    carried = [state[n].requires_grad for n in module._spec.state_names]
    assert all(carried) if name != "reference" else not any(carried)


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_history(name, stops):
    """Every step's likelihood, prior and movement, as from calls of 1, 2, ... steps."""
    module = build(name, dtype="float64", gradient="full")
    spec = module._spec
    x, init = inputs(module, batch=3)
    if stops:  # the first image after its fourth step, another one later or not
        movement = module.run(x, init, num_iters=4, history=True).history["movement"]
        module = build(name, dtype="float64", gradient="full", tol=1.01 * float(movement[0, 3]))
    found = []
    for lean in (False, True):
        with path(lean):
            found.append(module.run(x, init, num_iters=8, history=True))
    core, lean = (f.history for f in found)
    assert torch.equal(found[0].iterations, found[1].iterations)
    assert (found[0].iterations.min() < 8) == stops
    names = {"movement"} | ({"prior"} if spec.is_mixture else set())
    names |= {"log_likelihood"} if spec.is_mixture and not spec.is_reference else set()
    assert set(core) == set(lean) == names
    for key in names:
        assert core[key].shape[:2] == (3, 8) and not core[key].requires_grad
        assert torch.allclose(core[key], lean[key], rtol=1e-8, atol=1e-9), key
    state = init
    for t in range(8):
        before = state[spec.state_names[0]]
        one = module.run(x, state, num_iters=1)
        moved = (one.state[spec.state_names[0]] - before).square().mean(-1).sqrt().amax(1)
        going = found[0].iterations > t
        expected = torch.where(going, moved, 0)
        assert torch.allclose(core["movement"][:, t], expected, rtol=1e-8, atol=1e-9)
        if "log_likelihood" in names:
            likelihood = torch.where(going, one.log_likelihood, core["log_likelihood"][:, t - 1])
            assert torch.allclose(core["log_likelihood"][:, t], likelihood, rtol=1e-9)
        state = one.state
    with pytest.raises(TypeError, match="history must be True or False, got 1"):
        module.run(x, init, history=1)


def test_a_given_prior_is_checked():
    module = build("smm")
    x, init = inputs(module)
    active = torch.tensor([[True, True, False]] * 2)
    for lean in (False, True):
        with path(lean):
            for prior, error, match in (
                (torch.ones(2, 2), ValueError, r"init\['prior'\] must have shape \(2, 3\)"),
                (torch.ones(2, 3).double(), TypeError, r"init\['prior'\] must be a torch.float32"),
                (torch.tensor([[1.0, 1, -1]] * 2), ValueError, "at least 0, got -1.0 at index .0"),
                (torch.tensor([[1.0, 1, 1], [0, 0, 1]]), ValueError, "got none in image 1"),
            ):
                with pytest.raises(error, match=match):
                    module(x, {**init, "prior": prior}, slot_mask=active)
            # of an inactive slot it is not looked at
            prior = torch.tensor([[0.5, 0.5, torch.nan]] * 2)
            found = module.run(x, {**init, "prior": prior}, slot_mask=active)
            assert found.slots.isfinite().all() and found.log_likelihood.isfinite().all()
    with pytest.raises(KeyError, match="init must hold"):
        build("sa")(*inputs(build("sa"))[:1], {"slots": torch.ones(2, 3, 8), "prior": prior})


@pytest.mark.parametrize("lean", [False, True], ids=["core", "lean"])
@pytest.mark.parametrize("name", KINDS)
def test_an_empty_batch(name, lean):
    module = build(name, gradient="full")
    x = torch.zeros(0, 20, module._spec.input_dim, requires_grad=True)
    with path(lean):
        found = module.run(x, return_attention=True, history=True)
        given = module.run(x, found.state)
    assert found.slots.shape == (0, 3, module._spec.slot_dim) == given.slots.shape
    assert found.attention.shape == (0, 20, 3) and found.history["movement"].shape == (0, 2)
    (found.slots.sum() + found.attention.sum()).backward()
    assert x.grad.shape == x.shape
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


@pytest.mark.parametrize("lean", [False, True], ids=["core", "lean"])
def test_an_unreachable_state_is_told_once(lean, recwarn):
    x, init = inputs(build("smm"))
    for gradient in ("full", "straight-through", "bilevel", "implicit"):
        module = build("smm", gradient=gradient)
        own = {n: v.clone().requires_grad_() for n, v in init.items()}
        with path(lean), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            module(x, init)
            module(x)
            module(x, module.initial_state(x))
            with torch.no_grad():
                module(x, own)
            unused = [str(w.message) for w in told]
            assert not unused
            slots = [module(x, own) for _ in range(2)]
        grads = torch.autograd.grad(slots[0].square().sum(), list(own.values()), allow_unused=True)
        reached = gradient != "implicit"
        assert all((g is not None and bool(g.any())) == reached for g in grads)
        assert len(told) == (not reached)
    assert told[0].category is UserWarning and told[0].filename == __file__
    assert str(told[0].message).startswith("init['mean'] and init['log_std'] requires a gradient")


@pytest.mark.parametrize("lean", [False, True], ids=["core", "lean"])
@pytest.mark.parametrize("kind", [st.KMeans, st.GaussianMixture])
def test_clustering_takes_its_dtype_from_the_data(kind, lean):
    module = kind(dim=5, num_slots=3)
    x = torch.randn(2, 20, 5, generator=torch.Generator().manual_seed(0))
    with path(lean):
        for given, dtype in (
            (x, torch.float32),
            (x.double(), torch.float64),
            (x.half(), torch.float64),
            ((10 * x).long(), torch.float64),
            (x > 0, torch.float64),
        ):
            found = module.run(given, generator=torch.Generator().manual_seed(0))
            assert found.slots.dtype == dtype and found.slots.isfinite().all()
            again = module(given, module.initial_state(given))
            assert again.dtype == dtype
        with pytest.raises(TypeError, match="x must be a torch.float64 tensor, got torch.complex"):
            module(x.to(torch.complex64))
        with pytest.raises(TypeError, match="x must be a torch.float32 tensor, got torch.float64"):
            kind(dim=5, dtype="float32")(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert module(x.bfloat16()).dtype == torch.float32
        low = kind(dim=5, num_slots=3, bfloat16_inputs=True)
        assert low(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("lean", [False, True], ids=["core", "lean"])
@pytest.mark.parametrize("kind", [st.KMeans, st.GaussianMixture])
def test_clustering_of_one_image(kind, lean):
    x = torch.randn(20, 5)
    module = kind(dim=5, num_slots=3, start="gaussian")
    mask, active = torch.arange(20) < 15, torch.tensor([True, True, False])
    with path(lean):
        batch = module.initial_state(x[None])
        init = {n: v[0] for n, v in batch.items()}
        assert {n: v.shape for n, v in module.initial_state(x).items()} == {
            n: v.shape for n, v in init.items()
        }
        one = module.run(x, init, mask, active, return_attention=True, history=True)
        many = module.run(
            x[None], batch, mask[None], active[None], return_attention=True, history=True
        )
    for a, b in zip(one, many):
        pairs = [(a, b)] if torch.is_tensor(a) else [(a[n], b[n]) for n in b or ()]
        assert all(torch.equal(a, b[0]) for a, b in pairs)
    assert one.slots.shape == (3, module.slot_dim)
    assert module(x, one.state).shape == one.slots.shape


@pytest.mark.parametrize("lean", [False, True], ids=["core", "lean"])
def test_clusters_do_not_depend_on_the_unit(lean):
    """Two clusters, each of standard deviation 1e-3 of their distance; a channel is constant."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 60, 3, generator=g, dtype=torch.float64) * 1e-3
    x[:, 30:] += 1
    x[..., 2] = 7.0
    init = {"indices": torch.tensor([[0, 45]]), "log_std": torch.zeros(1, 2, 3).double()}
    found = []
    for factor in (1.0, 1e-2, 1e4):
        module = st.GaussianMixture(dim=3, num_slots=2, num_iters=10)
        state = {**init, "log_std": init["log_std"] + np.log(factor)}
        with path(lean):
            found.append(module.run(x * factor, state, return_attention=True))
        assert torch.allclose(found[-1].mean / factor, found[0].mean, rtol=1e-6)
        assert torch.allclose(found[-1].attention, found[0].attention, atol=1e-6)
    assert torch.allclose(found[0].variance[..., :2], torch.tensor(1e-6).double(), rtol=0.5)


@pytest.mark.parametrize("lean", [False, True], ids=["core", "lean"])
@pytest.mark.parametrize("kind", [st.KMeans, st.GaussianMixture])
def test_an_empty_slot_retains_its_state(kind, lean):
    """And its gradient passes to the state before."""
    x = torch.randn(1, 20, 2, dtype=torch.float64, requires_grad=True)
    far = torch.tensor([[[0.0, 0], [0.1, 0], [1e4, 1e4]]], dtype=torch.float64)
    init = {"slots": far} if kind is st.KMeans else {"mean": far, "log_std": torch.zeros_like(far)}
    init = {n: v.clone().requires_grad_() for n, v in init.items()}
    with path(lean):
        found = kind(dim=2, num_slots=3, num_iters=3).run(x, init)
    assert torch.equal(found.slots[0, 2, :2], far[0, 2]) and found.slots.isfinite().all()
    weight = torch.linspace(1, 2, found.slots.numel(), dtype=torch.float64).view_as(found.slots)
    (found.slots * weight).sum().backward()
    first, *rest = init.values()
    assert torch.allclose(first.grad[0, 2], weight[0, 2, :2], rtol=1e-12)
    if rest:
        assert found.prior[0, 2] == 0 and torch.allclose(
            found.variance[0, 2], torch.ones(2).double()
        )
        assert torch.allclose(rest[0].grad[0, 2], 2 * weight[0, 2, 2:], rtol=1e-12)
    assert all(t.grad.isfinite().all() for t in (x, first, *rest))


@pytest.mark.parametrize("lean", [False, True], ids=["core", "lean"])
def test_plain_em_of_two_points(lean):
    """A slot for each point: responsibilities of 1 and variances of next to nothing."""
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([[[9999.0], [0.0]]], dtype=dtype)
        init = {"indices": torch.tensor([[0, 1]]), "log_std": torch.zeros(1, 2, 1, dtype=dtype)}
        with path(lean):
            found = st.GaussianMixture(dim=1, num_slots=2).run(x, init, return_attention=True)
        assert torch.equal(found.mean, x) and (found.variance < 1e-4).all()
        assert torch.equal(found.attention, torch.eye(2, dtype=dtype)[None])


@pytest.mark.parametrize("name", ["sa", "smm", "reference"])
@pytest.mark.parametrize("lean", [False, True], ids=["core", "lean"])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_pruned_and_normalised_weights(name, lean):
    """Hooks before the call of a submodule compute them; nobody calls submodules here."""
    module = build(name, gradient="full")
    x, init = inputs(module)
    prune.l1_unstructured(module.to_q, "weight", 0.5)
    prune.random_unstructured(module.gru, "weight_ih", 0.3)
    torch.nn.utils.weight_norm(module.to_k)
    torch.nn.utils.spectral_norm(module.mlp.get_submodule("0"))
    plain = build(name, gradient="full")
    with path(lean):
        for _ in range(2):
            with torch.no_grad():
                for p in module.parameters():
                    p.add_(0.01 * torch.randn_like(p))
            slots = module(x, init)
            slots.square().sum().backward()
            now = {n: p.detach() for n, p in module._named().items()}
            plain.load_state_dict(now)
            module.eval()  # spectral_norm iterates in training alone
            assert torch.allclose(module(x, init), plain(x, init), atol=1e-6)
    assert (now["to_q.weight"] == 0).sum() >= 32
    for p in (module.to_q.weight_orig, module.to_k.weight_g, module.gru.weight_ih_orig):
        assert p.grad.abs().sum() > 0


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)  # the exporter's own
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["sa", "smm", "stable", "reference", "gmm"])
def test_export_of_the_lean_form_with_a_dynamic_batch(name, strict):
    module = build(name).eval()
    x, init = inputs(module)
    batch, count = torch.export.Dim("batch"), torch.export.Dim("count", min=4)
    shapes = ({0: batch, 1: count}, {n: {0: batch} for n in init})
    with path(True):
        program = torch.export.export(module, (x, init), dynamic_shapes=shapes, strict=strict)
        x, init = inputs(module, batch=5, count=31, seed=1)
        expected = module(x, init)
    assert torch.allclose(program.module()(x, init), expected, atol=1e-5)


class Model(torch.nn.Module):
    """A layer and a slot module, given its state."""

    def __init__(self, slots):
        super().__init__()
        self.encoder, self.slots = torch.nn.Linear(4, slots._spec.input_dim), slots

    def forward(self, x, *state):
        init = dict(zip(self.slots._spec.state_names, state)) if state else None
        return self.slots(self.encoder(x), init, return_attention=True)


@pytest.mark.filterwarnings("ignore")  # the exporters' own
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize(
    "name, drawn", [*((n, False) for n in KINDS if n != "sa-heads"), ("sa", True), ("stable", True)]
)
def test_onnx(name, dynamo, drawn, tmp_path):
    """Both exporters, a dynamic batch; a slot far from all inputs, which eps alone holds."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    slots = build(name, dtype="float32")
    model = Model(slots).eval()

    def arguments(batch):
        g = torch.Generator().manual_seed(batch)
        x = torch.randn(batch, 20, 4, generator=g)
        state = [torch.randn(batch, 3, slots.dim, generator=g) for _ in slots._spec.state_names]
        return (x,) if drawn else (x, *state)

    given, file = arguments(2), tmp_path / "model.onnx"
    names = [f"input{i}" for i in range(len(given))]
    if dynamo:
        batch = {0: torch.export.Dim("batch")}
        shapes = (batch, *([] if drawn else [(batch,) * (len(given) - 1)]))
        options = {"dynamic_shapes": shapes, "verbose": False}
    else:
        axes = {n: {0: "batch"} for n in (*names, "slots", "attention")}
        options = {"dynamic_axes": axes, "opset_version": 18}
    outputs = ["slots", "attention"]
    torch.onnx.export(
        model, given, file, dynamo=dynamo, input_names=names, output_names=outputs, **options
    )
    given = arguments(5)
    session = runtime.InferenceSession(file)
    found = session.run(None, {n: a.numpy() for n, a in zip(names, given)})
    with torch.no_grad():
        expected = model(*given)
    for a, b in zip(found, expected):
        assert a.shape == b.shape and np.isfinite(a).all()
        assert drawn or np.abs(a - b.numpy()).max() <= 1e-4


@pytest.mark.parametrize("kind", [st.SlotAttention, st.SlotMixture, st.KMeans, st.GaussianMixture])
def test_saved_modules_are_those_of_numpy(kind, tmp_path):
    """Each loads the other's file, with the options it had."""
    options = {"tol": 0.01, "num_slots": 4, "eps": 1e-5, "gradient": "straight-through"}
    module, file = kind(dim=6, **options), tmp_path / "m.safetensors"
    if not module._spec.has_network:
        module.save(file)
    else:
        module.double().save(file)
    of_numpy = getattr(smm_py, kind.__name__).load(file)
    assert {**of_numpy.options, "dtype": 0} == {**module.options, "dtype": 0}
    of_numpy.save(file)
    state = torch.get_rng_state()
    twin = kind.load(file)
    assert torch.equal(torch.get_rng_state(), state)
    assert twin.options == of_numpy.options and str(of_numpy.options["dtype"]) in (
        "float64",
        "None",
    )
    for name, value in module.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value)
    assert kind.load(file, num_iters=9).num_iters == 9


def test_save_and_load_refuse(tmp_path):
    file = tmp_path / "m.safetensors"
    module = build("smm")
    with torch.no_grad():
        module.to_q.weight[1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"to_q.weight must be finite, got nan at index .1, 0."):
        module.save(file)
    with pytest.raises(TypeError, match="float32 or float64 to be saved, got torch.bfloat16"):
        build("smm").bfloat16().save(file)
    assert not file.exists()
    build("smm").save(file)
    with pytest.raises(ValueError, match="m.safetensors: it holds a SlotMixture, expected a Slot"):
        st.SlotAttention.load(file)
    with pytest.raises(ValueError, match=r"m.safetensors: .* must have shape \(7, 5\)"):
        st.SlotMixture.load(file, hidden_dim=7)
    with pytest.raises(TypeError, match="m.safetensors: .* must be a float64 array"):
        st.SlotMixture.load(file, dtype="float64")


@pytest.mark.parametrize("library", [smm_py, st], ids=["numpy", "torch"])
def test_a_file_without_options_is_told(library, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    module = build("slot-norm", temperature=0.3)
    file = tmp_path / "m.safetensors"
    model = torch.nn.ModuleDict({"before": torch.nn.BatchNorm1d(3), "slots": module})
    for weights in (module.state_dict(), model.state_dict()):
        safetensors.save_file(weights, file)
        with pytest.raises(
            ValueError, match="m.safetensors: it does not tell .*num_iters=5"
        ) as told:
            library.SlotMixture.load(file, dim=8)
        assert "hidden_dim" not in str(told.value) and "dim=" not in str(told.value)
        taken = library.SlotMixture.load(file, assume_defaults=True)
        assert taken.hidden_dim == 9 and taken.num_iters == 5 and not taken.input_mlp
        taken = library.SlotMixture.load(file, **module.options)
        assert taken.options == module.options
    two = torch.nn.ModuleDict({"a": build("sa"), "b": build("sa")}).state_dict()
    safetensors.save_file(two, file)
    with pytest.raises(ValueError, match="must hold one SlotAttention, got 2 .*: 'a.', 'b.'"):
        library.SlotAttention.load(file, assume_defaults=True)
    with pytest.raises(ValueError, match="must hold one SlotMixture, got 0"):
        library.SlotMixture.load(file, assume_defaults=True)


@pytest.mark.parametrize("library", [smm_py, st], ids=["numpy", "torch"])
@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_files_of_narrow_numbers(narrow, library, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    module, file = build("sa"), tmp_path / "m.safetensors"
    weights = {n: v.to(narrow) for n, v in module.state_dict().items()}
    safetensors.save_file(weights, file)
    name = str(narrow).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"m.safetensors: .* is {name}; give dtype='float32'"):
        library.SlotAttention.load(file, assume_defaults=True)
    taken = library.SlotAttention.load(file, assume_defaults=True, dtype="float32")
    values = taken.parameters if library is smm_py else dict(taken.named_parameters())
    for key, value in weights.items():
        assert np.array_equal(
            np.asarray(values[key].detach() if library is st else values[key]),
            value.float().numpy(),
        )
    integers = {n: v.round().long() for n, v in weights.items()}
    safetensors.save_file(integers, file)
    with pytest.raises(TypeError, match="m.safetensors: .* must be a float32 array, got .*int64"):
        library.SlotAttention.load(file, assume_defaults=True, dtype="float32")


@pytest.mark.parametrize("library", [smm_py, st], ids=["numpy", "torch"])
def test_shapes_are_compared_before_anything_is_allocated(library, tmp_path, monkeypatch):
    file = tmp_path / "m.safetensors"
    smm_py.SlotAttention(dim=4).save(file)
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b'\\"dim\\": 4', b'\\"dim\\": 3000000')
    assert b"3000000" in header
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    monkeypatch.setattr(library.SlotAttention, "_build", lambda *a, **k: pytest.fail("was made"))
    with pytest.raises(ValueError, match="m.safetensors: .* must have shape .*3000000"):
        library.SlotAttention.load(file)


@pytest.mark.parametrize("library", [smm_py, st], ids=["numpy", "torch"])
@pytest.mark.parametrize("variant", ["stable", "paper"])
@pytest.mark.parametrize("model", ["smm", "sa"])
def test_weights_of_a_run_are_loaded(model, variant, library, tmp_path):
    """The slot module of a pipeline's model, with the options that it has there."""
    safetensors = pytest.importorskip("safetensors.torch")
    from examples.set_prediction.config import Config
    from examples.shared.modules import SlotEncoder

    config = Config.from_preset("tiny", model=model, variant=variant)
    encoder = SlotEncoder(config)
    file = tmp_path / "model.safetensors"
    weights = {f"encoder.{n}": v.contiguous() for n, v in encoder.state_dict().items()}
    safetensors.save_file(weights, file, {"config": config.without_places()})
    kind = {"smm": "SlotMixture", "sa": "SlotAttention"}
    taken = getattr(library, kind[model]).load(file)
    own = encoder.slots.options
    assert taken.options == {**own, **({"variant": "stable"} if model == "smm" else {})}
    with pytest.raises(ValueError, match="it must hold one|it is of a run with the model"):
        getattr(library, kind["sa" if model == "smm" else "smm"]).load(file)


def test_compat_gives_the_other_packages_names(tmp_path):
    module = compat.SlotAttention(num_slots=3, dim=8, iters=2, eps=1e-7, hidden_dim=16)
    assert (module.dim, module.num_slots, module.iters, module.eps) == (8, 3, 2, 1e-7)
    assert module.scale == 8**-0.5 and module.norm_pre_ff.weight.shape == (8,)
    state = torch.nn.ModuleDict({"slots": module}).state_dict()
    assert set(state) == {
        f"slots.{n}"
        for n in """slots_mu slots_logsigma norm_input.weight norm_input.bias to_q.weight to_q.bias
        to_k.weight to_k.bias to_v.weight to_v.bias norm_slots.weight norm_slots.bias gru.weight_ih
        gru.weight_hh gru.bias_ih gru.bias_hh norm_pre_ff.weight norm_pre_ff.bias mlp.0.weight
        mlp.0.bias mlp.2.weight mlp.2.bias""".split()
    }
    assert state["slots.slots_mu"].shape == (1, 1, 8)
    other = compat.SlotAttention(num_slots=3, dim=8, iters=2, eps=1e-7, hidden_dim=16)
    other.load_state_dict(module.state_dict())
    pairs = zip(module.parameters(), other.parameters())
    assert all(torch.equal(a, b) and a.shape == b.shape for a, b in pairs)
    module.save(tmp_path / "m.safetensors")
    twin = compat.SlotAttention.load(tmp_path / "m.safetensors")
    assert twin.options == module.options and torch.equal(twin.slots_mu, module.slots_mu)
    st.SlotAttention(dim=8).save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="gradient must be 'full' in that package's module"):
        compat.SlotAttention.load(tmp_path / "m.safetensors")


def test_subinterpreters_are_told():
    code = """
import importlib.machinery, sys

class Refuses(importlib.machinery.PathFinder):
    def find_spec(name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if name == "smm_py._core":
            spec.loader.create_module = refuse
        return spec

def refuse(spec):
    raise ImportError("module smm_py._core does not support loading in subinterpreters")

sys.meta_path.insert(0, Refuses)
import smm_py
"""
    done = run_python("-c", code, cwd=ROOT)
    assert done.returncode and "cannot be used in a subinterpreter" in done.stderr
    assert "pip install" not in done.stderr


@pytest.mark.parametrize("backward", [False, True])
def test_a_signal_stops_a_call(backward):
    """Forward and backward, within a second; the next call is right."""
    code = f"""
import signal, time, torch
from smm_py.torch import SlotMixture
module = SlotMixture(dim=16, num_slots=4, num_iters=2000, gradient="full", recompute=True)
x = torch.randn(1, 20_000, 16, requires_grad=True)
init = {{"mean": torch.randn(1, 4, 16), "log_std": torch.zeros(1, 4, 16)}}
expected = module(x, init, num_iters=2)
slots = module(x, init, num_iters=300) if {backward} else None
signal.signal(signal.SIGALRM, lambda *unused: (_ for _ in ()).throw(KeyboardInterrupt()))
signal.setitimer(signal.ITIMER_REAL, 0.3)
start = time.monotonic()
try:
    slots.sum().backward() if {backward} else module(x, init)
except KeyboardInterrupt:
    print("stopped after", time.monotonic() - start, x.grad is None)
assert torch.equal(module(x, init, num_iters=2), expected)
"""
    done = run_python("-c", code, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("stopped after"), done.stderr
    assert float(done.stdout.split()[2]) < 1.3 and done.stdout.split()[3] == "True"


def test_double_backward_is_refused():
    module = build("smm")
    x, init = inputs(module)
    x.requires_grad_()
    (g,) = torch.autograd.grad(module(x, init).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        g.sum().backward()


@pytest.mark.parametrize("lean", [False, True], ids=["core", "lean"])
@pytest.mark.parametrize("name", KINDS)
def test_nan_stays_in_its_image(name, lean):
    module = build(name)
    x, init = inputs(module, batch=3)
    bad = x.clone()
    bad[1, 4, 2] = float("nan")
    with path(lean):
        good, got = module(x, init), module(bad, init)
        assert torch.equal(got[[0, 2]], good[[0, 2]]) and got[1].isnan().any()
        mask = torch.ones(3, 20, dtype=torch.bool)
        mask[1, 4] = False
        assert module(bad, mask=mask).isfinite().all()
        bad.requires_grad_()
        slots = module(bad, init, mask)
        slots.sum().backward()
    assert slots.isfinite().all() and bad.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_errors_name_the_argument():
    module = build("stable")
    x, init = inputs(module)

    def rows(indices):
        return {"indices": torch.tensor(indices), "log_std": init["log_std"]}

    for error, match, call in (
        (TypeError, "x must be a tensor", lambda: module(x.numpy())),
        (
            TypeError,
            "x must be a torch.float32 tensor, got torch.float64",
            lambda: module(x.double()),
        ),
        (
            ValueError,
            r"x must have shape \(B, N, 5\), got \(2, 20, 4\)",
            lambda: module(x[..., :4]),
        ),
        (ValueError, "num_iters must be at least 1, got 0", lambda: module(x, num_iters=0)),
        (KeyError, "init must hold", lambda: module(x, {"slots": init["mean"]})),
        (
            ValueError,
            "must have shape",
            lambda: module(x, {**init, "log_std": init["log_std"][:, :2]}),
        ),
        (
            ValueError,
            "real input, got none in image 1",
            lambda: module(x, mask=torch.tensor([[True] * 20, [False] * 20])),
        ),
        (TypeError, "mask must be a torch.bool tensor", lambda: module(x, mask=torch.ones(2, 20))),
        (ValueError, "num_slots must not exceed", lambda: module(x, num_slots=21)),
        (ValueError, "num_slots must agree with init", lambda: module(x, init, num_slots=4)),
        (
            ValueError,
            r"slot_mask must have shape \(2, 3\), got \(2, 1\)",
            lambda: module(x, slot_mask=torch.ones(2, 1) > 0),
        ),
        (ValueError, "x must hold at least one input of each image", lambda: module(x[:, :0])),
        (
            ValueError,
            "rows of real inputs, from 0 to 19, got 20 at index .1, 2.",
            lambda: module(x, rows([[0, 1, 2], [3, 4, 20]])),
        ),
        (
            ValueError,
            "and not masked, got 4 at index .0, 1.",
            lambda: module(x, rows([[0, 4, 2]] * 2), torch.arange(20).expand(2, -1) != 4),
        ),
        (
            TypeError,
            "return_attention must be True or False, got 1",
            lambda: module(x, return_attention=1),
        ),
        (TypeError, "seed must be an int, got 1.7", lambda: st.SlotAttention(seed=1.7)),
        (ValueError, "seed must be at least 0, got -1", lambda: st.SlotAttention(seed=-1)),
    ):
        for lean in (False, True):
            with pytest.raises(error, match=match), path(lean):
                call()


def test_manual_seed_fixes_everything():
    x, results = torch.rand(2, 9, 8), []
    for _ in range(2):
        torch.manual_seed(7)
        module = st.SlotMixture(dim=8, num_slots=3)
        results.append(module(x))
    assert torch.equal(*results)
    assert not torch.equal(module(x), results[0])


@pytest.mark.parametrize("name", KINDS)
def test_each_image_may_have_a_generator(name):
    """Its state is then what it would be alone."""
    module = build(name)
    x, _ = inputs(module, batch=3)

    def generators(seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    state = module.initial_state(x, generator=generators((4, 9, 2)))
    alone = module.initial_state(x[1:2], generator=generators((9,))[0])
    for key, value in state.items():
        assert torch.allclose(value[1:2], alone[key], atol=1e-6), key
        if key != "log_std" or name != "gmm":  # that of a plain mixture is not drawn
            assert not torch.equal(value[0], value[1])
    slots = module(x, generator=generators((4, 9, 2)))
    assert torch.equal(slots, module(x, state))
    with pytest.raises(ValueError, match="generator must hold one for each of the 3 images, got 2"):
        module(x, generator=generators((1, 2)))
    with pytest.raises(
        TypeError,
        match="generator must be a torch.Generator, or a list of one for each image, got int",
    ):
        module(x, generator=7)


@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:DeprecationWarning"
)  # of PyTorch's own forward mode
@pytest.mark.parametrize("frozen", [False, True])
def test_forward_mode_is_refused(frozen):
    """Tangents are not dropped where nothing else would stop them."""
    module = build("smm").requires_grad_(not frozen)
    x, init = inputs(module)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode|jvp"):
        module(forward_ad.make_dual(x, torch.ones_like(x)), init)


def test_a_dead_slot_stays_dead_on_every_device():
    """Its prior is exactly 0, and a point nearer to it than to the others does not revive it."""
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [0.01 * rng.standard_normal(1000), 100 + 0.01 * rng.standard_normal(1000), [10.0]]
    )[None, :, None]
    init = {
        "mean": torch.tensor([[[0.0], [100.0], [1e4]]], dtype=torch.float64),
        "log_std": torch.zeros(1, 3, 1, dtype=torch.float64),
    }
    module = st.GaussianMixture(dim=1, num_slots=3, num_iters=4, dtype="float64")
    core = module(torch.tensor(x), init)
    with _modules.force_lean():
        lean = module(torch.tensor(x), init)
    assert torch.allclose(core, lean, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name, options", [("smm", {}), ("reference", {}), ("sa", {}), ("sa-heads", {"qkv_bias": False})]
)
def test_widths_whose_rows_the_core_spaces(name, options):
    """256 channels, where rows of weights would share few cache sets; means start at inputs."""
    module = build(name, **options, dim=256, input_dim=256, hidden_dim=256, dtype="float64")
    x, init = inputs(module, batch=2, count=70)
    init = {n: v for n, v in init.items() if n == "log_std"} | {
        "indices": torch.tensor([[0, 3, 69], [64, 1, 2]])
    }
    found = []
    for lean in (False, True):
        with path(lean):
            own = x.clone().requires_grad_()
            slots = module(own, init)
            found.append(
                (
                    slots,
                    *torch.autograd.grad(
                        slots.sin().sum(), [own, *module.parameters()], allow_unused=True
                    ),
                )
            )
    for core, other in zip(*found):
        assert (core is None and other is None) or torch.allclose(
            core, other, rtol=1e-8, atol=1e-10
        )


def test_a_picture_of_nan_has_no_likelihood():
    x = torch.zeros(2, 5, 2)
    x[1] = torch.nan
    init = {"mean": torch.zeros(2, 2, 2), "log_std": torch.zeros(2, 2, 2)}
    found = st.GaussianMixture(dim=2, num_slots=2, num_iters=1).run(x, init)
    assert found.log_likelihood[0].isfinite() and found.log_likelihood[1].isnan()


def test_loading_a_start_of_each_slot_keeps_the_optimizer():
    module = build("smm")
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    state = module.state_dict()
    state["mean_mu"] = torch.zeros(
        module._spec.num_slots, module._spec.dim, dtype=state["mean_mu"].dtype
    )
    module.load_state_dict(state)
    assert (
        any(p is module.mean_mu for p in optimizer.param_groups[0]["params"])
        and module.mean_mu.shape == state["mean_mu"].shape
    )


def test_memory_format_and_zero_copy():
    """Non-contiguous inputs give the same; contiguous ones are not copied."""
    module = build("smm")
    x, init = inputs(module)
    strided = torch.empty(2, 5, 20).transpose(1, 2)
    strided.copy_(x)
    assert torch.equal(module(strided, init), module(x, init))
    assert _ops._memory(x, x.dtype, keep := []) == (x.data_ptr(), x.shape) and not keep


def test_compat():
    """The other package's names and shapes load; its formula is Slot Attention with biases."""
    module = compat.SlotAttention(num_slots=3, dim=8, iters=2, hidden_dim=16)
    state = {
        n.replace("norm_mlp", "norm_pre_ff"): p.detach().clone() + 0.1
        for n, p in module.named_parameters()
    }
    for name in ("slots_mu", "slots_logsigma"):
        state[name] = state[name][None, None]
    module.load_state_dict(state)
    x = torch.randn(2, 9, 8)
    slots = module(x, num_slots=4)
    assert slots.shape == (2, 4, 8)
    assert torch.equal(module.norm_mlp.weight, state["norm_pre_ff.weight"])
    with pytest.raises(TypeError, match="dim must be an int, got 'x'"):
        compat.SlotAttention(3, "x")
    with pytest.raises(RuntimeError, match="size mismatch for slots_mu"):
        module.load_state_dict({**module.state_dict(), "slots_mu": torch.zeros(1, 5, 8)})


def test_distributed():
    """Two processes, half the batch each: the gradients of the whole batch."""
    pytest.importorskip("torch.distributed")
    done = run_python(*TORCHRUN, "-m", "tests.ddp_check", cwd=ROOT)
    output = done.stdout + done.stderr
    assert done.returncode == 0 and done.stdout.count("same gradients") == 2, output


def test_docstrings():
    for module, least in ((st, 5), (_modules, 4), (st.lean, 4), (_peers, 4)):
        results = doctest.testmod(module)
        assert results.attempted >= least and not results.failed
