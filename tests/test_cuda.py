"""The twins and the pipelines on a GPU, against the C core on the CPU; skipped without a GPU."""

import json

import pytest

torch = pytest.importorskip("torch")

from test_torch import KINDS, build, inputs  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:init.*requires a gradient:UserWarning"),
]


def on_gpu(x, init):
    return x.cuda(), {name: value.cuda() for name, value in init.items()}


def outputs_and_gradients(module, x, init, masks):
    """Slots, attention and every gradient, on the CPU."""
    leaves = [
        x,
        *(v for v in init.values() if v.is_floating_point()),
        *(p for p in module.parameters() if p.requires_grad),
    ]
    slots, attention = module(x, init, *masks, return_attention=True)
    weight = torch.linspace(-1, 1, attention.numel(), dtype=x.dtype, device=x.device).view_as(
        attention
    )
    grads = torch.autograd.grad(
        (slots**2).sum() + (attention * weight).sum(), leaves, allow_unused=True
    )
    return [
        a.detach().cpu()
        for a in (
            slots,
            attention,
            *(torch.zeros(1, dtype=x.dtype) if g is None else g for g in grads),
        )
    ]


@pytest.mark.parametrize("gradient", ["full", "implicit", "straight-through", "bilevel"])
@pytest.mark.parametrize("name", KINDS)
def test_equals_the_core(name, gradient):
    """In float64, and in float32 about as exactly as the core itself."""
    single = build(name, gradient=gradient)
    x, init = inputs(single)
    masks = (
        torch.rand(2, 20, generator=torch.Generator().manual_seed(1)) < 0.7,
        torch.tensor([[True, False, True], [True, True, True]]),
    )

    def results(dtype, device):
        module = build(name, gradient=gradient, dtype=dtype)
        module.load_state_dict(single.state_dict())

        def moved(value):
            return value.to(device, getattr(torch, dtype)).requires_grad_()

        return outputs_and_gradients(
            module.to(device),
            moved(x),
            {n: moved(v) for n, v in init.items()},
            [m.to(device) for m in masks],
        )

    exact = results("float64", "cpu")
    scale = max(1.0, *(float(a.abs().max()) for a in exact))

    def error(got):
        assert len(got) == len(exact)
        return max(float((a - b).abs().max()) for a, b in zip(got, exact)) / scale

    assert error(results("float64", "cuda")) <= 1e-9
    assert error(results("float32", "cuda")) <= max(1e-6, 4 * error(results("float32", "cpu")))


@pytest.mark.parametrize("name", KINDS)
def test_a_generator_of_the_cpu_draws_the_same_state(name):
    module = build(name)
    x, _ = inputs(module)
    states = [
        module.to(device).initial_state(
            x.to(device), generator=[torch.Generator().manual_seed(s) for s in (3, 5)]
        )
        for device in ("cpu", "cuda")
    ]
    for key, value in states[0].items():
        assert states[1][key].is_cuda and torch.allclose(
            value.double(), states[1][key].cpu().double(), atol=1e-6
        )
    own = module.initial_state(x.cuda(), generator=torch.Generator("cuda").manual_seed(3))
    assert all(v.is_cuda and v.shape == states[1][k].shape for k, v in own.items())


def test_autocast_runs_in_float32():
    module = build("smm").cuda()
    x, init = on_gpu(*inputs(module))
    expected = module(x.half().float(), init)
    with torch.autocast("cuda"):
        got = module(x.half(), init)
    assert got.dtype == torch.float32 and torch.equal(got, expected)


def test_wrong_values_are_told():
    module = build("stable").cuda()
    x, init = on_gpu(*inputs(module))
    with pytest.raises(ValueError, match="x must be on cuda:0 as the parameter .* is, got cpu"):
        module(x.cpu(), init)
    with pytest.raises(ValueError, match="mask must be on cuda:0 as x is, got cpu"):
        module(x, init, torch.ones(2, 20, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"init\['indices'\] must be rows of real inputs"):
        module(x, {"indices": torch.tensor([[0, 1, 20]] * 2).cuda(), "log_std": init["log_std"]})


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)  # the compiler's own
@pytest.mark.parametrize("name", ["sa", "stable"])
def test_compile(name):
    module = build(name).cuda()
    x, init = on_gpu(*inputs(module))
    got = torch.compile(module, fullgraph=True)(x, init)
    assert torch.allclose(got, module(x, init), atol=1e-4)


@pytest.mark.parametrize("pipeline", ["set_prediction", "object_discovery", "slate"])
def test_pipelines_train_as_on_the_cpu(pipeline, tmp_path):
    """The same loss within rounding, step by step, from the same pictures, weights and slots."""
    pytest.importorskip("safetensors")
    from pipelines import run_well

    options = (
        "train",
        "--steps",
        4,
        "--log-every",
        1,
        "--pictures",
        64,
        "--batch-size",
        8,
        "--precision",
        "float32",
    )
    for device in ("cpu", "cuda"):
        run_well(pipeline, *options, "--device", device, "--out", tmp_path / device)
    losses = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / device / "metrics.jsonl").read_text().splitlines()
        ]
        for device in ("cpu", "cuda")
    ]
    # SLATE's Gumbel noise is drawn on the device, other numbers there
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(
        losses[0], rel=0.1 if pipeline == "slate" else 5e-3
    )
    # what was trained on one is evaluated on the other
    assert '"images": 5' in run_well(
        pipeline, "eval", "--images", 5, "--draws", 1, "--out", tmp_path / "cuda"
    )
