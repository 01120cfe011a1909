"""The Slot Mixture Module without what it has beyond Slot Attention."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from examples.set_prediction.config import Config  # noqa: E402
from examples.shared.modules import make_slots  # noqa: E402

SMALL = {"dim": 8, "hidden": 16, "slots": 3, "train_iters": 1}


def module_of(**changes):
    return make_slots(Config.from_preset("tiny", **SMALL, **changes)).eval()


def one_step(module, seed=0):
    """Inputs, an initial state with a spread of its own, and what one step from it gives."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 12, 8, generator=generator)
    init = {"mean": x[:, :3].clone(), "log_std": torch.randn(2, 3, 8, generator=generator)}
    return x, init, module.run(x, init, return_attention=True)


def formulas(module, x):
    from smm_py.torch import Formulas

    return Formulas(module._spec, x, dict(module.named_parameters()), None)


@pytest.mark.parametrize("without", ["spread", "density"])
def test_responsibilities_are_of_one_spread_or_of_dot_products(without):
    module = module_of(without=without)
    x, init, found = one_step(module)
    keys = formulas(module, x).keys
    queries = init["mean"] @ module.to_q.weight.mT
    if "bias" in dict(module.to_q.named_parameters()):
        queries = queries + module.to_q.bias
    if without == "spread":
        logits = -0.5 * torch.cdist(keys, queries).square()
    else:
        logits = keys @ queries.mT
    expected = (8**-0.5 * logits).softmax(-1)
    torch.testing.assert_close(found.attention, expected, rtol=1e-4, atol=1e-5)
    assert found.variance.std() > 0  # it is found all the same, for the slots


def test_slots_that_are_means_do_not_read_the_variance():
    """After a step of an optimizer too."""
    module = module_of(without="variance")
    _, _, found = one_step(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    found.slots.square().sum().backward()
    optimizer.step()
    assert module.to_out.weight[:, :8].abs().min() > 0
    assert not module.to_out.weight[:, 8:].any()
    with torch.no_grad():
        found = one_step(module)[2]
        alone = found.mean @ module.to_out.weight[:, :8].mT + module.to_out.bias
    torch.testing.assert_close(found.slots, alone, rtol=1e-5, atol=1e-5)


def test_slot_attention_has_slots_of_its_own_width():
    module = module_of(model="sa", start="gaussian", slot_dim=16)
    assert module(torch.randn(2, 12, 8)).shape == (2, 3, 16)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"slot_dim": 16}, "slot_dim must be left out with model 'smm', as it is of sa, got 16"),
        ({"model": "sa", "without": "spread"}, "without must be left out with model 'sa'"),
    ],
)
def test_options_of_another_model_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        Config.from_preset("tiny", **changes)
