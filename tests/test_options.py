"""The table of options: what follows from it, on both sides of it."""

import ast
import inspect
import re
import sys

import numpy as np
import pytest
from cases import BASE, CASES, build, inputs
from processes import ROOT, run_python

import smm_py
from smm_py._options import Options
from smm_py._spec import Spec

KINDS = [smm_py.SlotAttention, smm_py.SlotMixture, smm_py.KMeans, smm_py.GaussianMixture]


def test_every_option_of_the_core_has_a_row():
    rows = {row.core or name for name, row in Spec._rows.items()}
    assert set(smm_py._core.OPTIONS) <= rows


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_has_a_case(kind):
    """One where it is not the default, which brings the tests of gradients, files and others."""
    missing = [
        name
        for name, row in kind._rows.items()
        if name not in Options._rows  # which all tests vary, or which have tests of their own
        and name not in ("seed", "dtype")
        and not any(
            issubclass(kind, k) and {**BASE, **o}.get(name, row.default) != row.default
            for k, o in CASES.values()
        )
    ]
    assert not missing


def check_pytorch_form(module):
    """Slots, attention and gradients of the form in PyTorch operations are those of the core."""
    torch = pytest.importorskip("torch")
    import smm_py.torch as twins

    x, call = inputs(module, masks=True)
    out = module(x, attention=True, **call)
    d_slots = np.random.default_rng(1).standard_normal(out.slots.shape)
    expected = module.backward(out, d_slots)
    twin = getattr(twins, type(module).__name__)(**module.options)
    twin.load_state_dict({n: torch.tensor(p) for n, p in module.parameters.items()})
    leaves = {"x": torch.tensor(x, requires_grad=True)}
    leaves |= {n: torch.tensor(a, requires_grad=True) for n, a in call["init"].items()}
    masks = {n: torch.tensor(call[n]) for n in ("mask", "slot_mask")}
    init = {n: leaves[n] for n in call["init"]}
    with twins.force_lean():
        slots, attention = twin(leaves["x"], init, **masks, return_attention=True)
    slots.backward(torch.tensor(d_slots))
    np.testing.assert_allclose(slots.detach(), out.slots, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(attention.detach(), out.attention, rtol=1e-9, atol=1e-9)
    for n, leaf in {**leaves, **dict(twin.named_parameters())}.items():
        got = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad
        np.testing.assert_allclose(got, expected[n], rtol=1e-8, atol=1e-8, err_msg=n)


@pytest.mark.parametrize("name", CASES)
def test_pytorch_form(name):
    check_pytorch_form(build(name))


def drawn_options(kind, rng):
    """Options of a kind that fit each other, whatever its table holds."""
    sizes = dict(dim=[6, 8], num_slots=[3, 5], input_dim=[5, 6, 40], heads=[1, 2, 4])
    sizes |= dict(qkv_dim=[None, 4, 12], hidden_dim=[9], num_iters=[1, 3], eps=[1e-8, 0.3])
    while True:
        drawn = {"dtype": "float64"}
        for name, row in kind._rows.items():
            values = sizes.get(name)
            if row.check.type == "bool" and name != "bfloat16_inputs":
                values = [False, True]
            elif row.check.type.startswith("{") and name != "dtype":
                values = sorted(ast.literal_eval(row.check.type))
            if values and (name in sizes or rng.random() < 0.5):
                drawn[name] = values[rng.integers(len(values))]
        try:
            return kind(**drawn)
        except ValueError:
            continue


@pytest.mark.filterwarnings("ignore:.*requires a gradient, which is zero")
@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kind", [smm_py.SlotAttention, smm_py.SlotMixture])
def test_pytorch_form_of_combined_options(kind, seed):
    rng = np.random.default_rng(seed)
    module = drawn_options(kind, rng)
    for name, value in module.parameters.items():
        module.parameters[name] = value + 0.1 * rng.standard_normal(value.shape)
    check_pytorch_form(module)


def test_constructors_show_their_options():
    torch = pytest.importorskip("smm_py.torch")
    for kind in [*KINDS, *(getattr(torch, k.__name__) for k in KINDS)]:
        parameters = inspect.signature(kind).parameters
        assert set(kind._rows) == set(parameters)
        by_position = [n for n, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
        first = ["dim", "num_slots", "num_iters", "hidden_dim", "input_dim"]
        assert by_position == [n for n in first if n in parameters]
        for name, parameter in parameters.items():
            assert f"\n{name} : " in kind.__doc__ and parameter.default is kind._rows[name].default


def test_options_are_attributes_that_stay():
    module = smm_py.SlotMixture(8, 3, norm_kv=True)
    assert (module.dim, module.num_slots, module.input_dim, module.norm_kv) == (8, 3, 8, True)
    assert type(module)(**module.options).options == module.options
    with pytest.raises(AttributeError, match="dim is fixed when a module is made"):
        module.dim = 9
    twins = pytest.importorskip("smm_py.torch")
    twin = twins.SlotMixture(8, 3, norm_kv=True)
    assert twin.options == module.options and twin.num_slots == 3
    assert twin.norm_kv is twin.get_submodule("norm_kv")  # its parameters, which have the name too
    with pytest.raises(AttributeError, match="num_slots is fixed"):
        twin.num_slots = 4


def test_unknown_options():
    with pytest.raises(TypeError, match="KMeans has no option 'num_slot'; did you mean num_slots"):
        smm_py.KMeans(num_slot=3)
    with pytest.raises(TypeError, match="KMeans has no option 'hidden_dim'"):
        smm_py.KMeans(hidden_dim=3)
    with pytest.raises(TypeError, match="SlotAttention: too many positional"):
        smm_py.SlotAttention(8, 3, 2, 16, 8, 1e-8)
    with pytest.raises(TypeError, match="SlotAttention: multiple values for argument 'dim'"):
        smm_py.SlotAttention(8, dim=3)


def test_the_core_refuses_unknown_options():
    with pytest.raises(ValueError, match="colour must be an option in its range"):
        smm_py._core.Config(0, {"colour": 1})
    with pytest.raises(ValueError, match="heads must be an option in its range.*got 0.5"):
        smm_py._core.Config(0, {"dim": 4, "heads": 0.5})
    with pytest.raises(ValueError, match="the configuration has a field out of range"):
        smm_py._core.Config(0, {"heads": 2})


USER = """
import smm_py, smm_py.torch, smm_py.torch.compat, torch
from typing import assert_type

smm_py.SlotMixture(dim="16", prior="wrong")  # 2
smm_py.torch.SlotMixture(dim="16", prior="wrong")  # 2
smm_py.KMeans(hidden_dim=3)  # 1
module = smm_py.torch.SlotMixture(16, 3, prior="uniform", seed=None)
x = torch.zeros(1, 9, 16)
assert_type(module.dim, int)
assert_type(module(x), torch.Tensor)
assert_type(module(x, return_attention=True), tuple[torch.Tensor, torch.Tensor])
assert_type(module.forward(x, return_attention=True), tuple[torch.Tensor, torch.Tensor])
assert_type(module(x, return_attention=bool(x)), torch.Tensor | tuple[torch.Tensor, torch.Tensor])
assert_type(module.run(x), smm_py.torch.Output)
assert_type(smm_py.torch.compat.SlotAttention(num_slots=3, dim=16)(x), torch.Tensor)
assert_type(smm_py.SlotMixture(16, 3)(x.numpy()), smm_py.Output)
"""


@pytest.mark.parametrize(
    "checker, options, error",
    [
        ("mypy", ["--strict"], r":(\d+): error:"),
        ("pyright", ["--pythonpath", sys.executable], r":(\d+):\d+ - error:"),
    ],
)
def test_type_checkers(tmp_path, checker, options, error):
    """What is wrong is seen, and nothing else, the README's code included; results have types."""
    pytest.importorskip(checker)
    pytest.importorskip("torch")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first, arrays, tensors, clustering = re.findall(r"```python\n(.*?)```", readme, re.S)
    texts = [USER, first, arrays + clustering, tensors]
    scripts = [tmp_path / f"script{i}.py" for i in range(len(texts))]
    for script, text in zip(scripts, texts):
        script.write_text(text, encoding="utf-8")
    done = run_python("-m", checker, *options, *map(str, scripts), cwd=ROOT)
    expected = []
    for number, line in enumerate(USER.splitlines(), 1):
        expected += [str(number)] * int(line.partition("  # ")[2] or 0)
    assert re.findall(error, done.stdout) == expected, done.stdout


def test_trim_gives_memory_back():
    smm_py.trim()
    module = smm_py.SlotMixture(dim=64, num_slots=7, num_iters=3)
    module(np.zeros((4, 4096, 64), "float32"), seed=0)
    assert smm_py.trim() > 2**20
    assert smm_py.trim() == 0


def test_formulas_of_a_subclass():
    """A module runs formulas of its own, on CPU tensors too."""
    torch = pytest.importorskip("torch")
    from smm_py.torch import SlotMixture
    from smm_py.torch.lean import Formulas

    class Sharper(Formulas):
        def e_step(self, mean, log_std, prior):
            gamma, hidden, density = super().e_step(mean, log_std, prior)
            gamma = gamma**self.power
            return gamma / gamma.sum(-1, keepdim=True), hidden, density

    class Module(SlotMixture):
        def __init__(self, power, **options):
            super().__init__(**options)
            self.power = torch.nn.Parameter(torch.tensor(power))

        def formulas(self, *arguments):
            sharper = Sharper(*arguments)
            sharper.power = self.power
            return sharper

    x = torch.randn(2, 20, 8)
    plain = SlotMixture(8, 3, seed=0)
    init = plain.initial_state(x)
    one, two = Module(1.0, dim=8, num_slots=3, seed=0), Module(2.0, dim=8, num_slots=3, seed=0)
    torch.testing.assert_close(one(x, init), plain(x, init), rtol=1e-4, atol=1e-4)
    slots = two(x, init)
    assert (slots - plain(x, init)).abs().max() > 1e-3
    slots.square().sum().backward()
    assert two.power.grad.abs() > 0
