"""Reference counts and memory over many good and bad calls; peak memory of a large one."""

import gc
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import build, inputs
from processes import run_python

import smm_py

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc"
)


def kibibytes(key):
    """VmRSS (resident now) or VmHWM (at most so far) of this process.

    Not getrusage, which starts a new process at the size of the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def test_large_gradients_are_arrays_of_their_own():
    """They share a block of memory, which lives as long as any of them."""
    module = smm_py.SlotMixture(dim=256, num_slots=3, num_iters=1, hidden_dim=512)
    x = np.random.default_rng(0).standard_normal((2, 600, 256), dtype="float32")
    out = module(x, seed=0)
    grads = module.backward(out, np.ones_like(out.slots))
    names = list(grads)
    for i, name in enumerate(names):
        assert not any(np.shares_memory(grads[name], grads[other]) for other in names[:i]), name
    kept, copy = grads["mlp.0.weight"], grads["mlp.0.weight"].copy()
    del grads
    again = module.backward(out, 2 * np.ones_like(out.slots))
    assert np.array_equal(kept, copy) and not np.shares_memory(kept, again["mlp.0.weight"])
    np.testing.assert_allclose(again["mlp.0.weight"], 2 * copy, rtol=1e-4, atol=1e-6)


def test_gradients_that_are_kept_hold_little_else():
    """Not the scratch memory of the calls that made them, nor pages in front of their own."""
    module = smm_py.SlotAttention(dim=192, num_slots=7, num_iters=3, hidden_dim=384, seed=0)
    x = np.random.default_rng(0).standard_normal((1, 64, 192)).astype("f4")

    def gradients():
        out = module(x, seed=1)
        return module.backward(out, np.ones_like(out.slots))

    gradients()
    before = kibibytes("VmRSS")
    kept = [gradients() for _ in range(40)]
    own = sum(array.nbytes for one in kept for array in one.values()) / 1024
    smm_py.trim()
    assert kibibytes("VmRSS") - before < 2 * own


def test_counts_stay_flat():
    """10,000 calls of the binding, good and bad, forward and backward."""
    module = build("smm", dtype="float32")
    x, call = inputs(module, 1, 3)
    config, params = module._spec.config, module.parameters.of_core()
    mean, log_std = call["init"]["mean"], call["init"]["log_std"]
    core = smm_py._core
    good = {"config": config, "x": x, "params": params, "num_iters": 2}
    good |= {"mean": mean, "log_std": log_std}
    out = core.forward(**good, attention=True, save=True)
    d_slots = np.ones_like(out.slots)
    saved = out.saved
    held = [config, x, params, mean, log_std, d_slots, saved, *params, None, np.dtype("float32")]
    bad = [
        ("x", None),
        ("x", x.astype(float)),
        ("x", x[0]),
        ("params", params[:-1]),
        ("params", (*params[:-1], x)),
        ("mean", None),
        ("log_std", mean[:, :1]),
        ("indices", mean),
        ("mask", mean),
        ("slot_mask", x),
        ("num_iters", 0),
        ("num_iters", "a"),
        ("config", None),
        ("saved", saved),
        ("unknown", core),
    ]

    def calls(count):
        for i in range(count):
            core.forward(**good, attention=True, save=True)
            core.backward(**good, saved=saved, d_slots=d_slots)
            name, value = bad[i % len(bad)]
            with pytest.raises((TypeError, ValueError)):
                core.forward(**{**good, name: value})
            with pytest.raises(ValueError):
                core.backward(**good, saved=saved, d_slots=d_slots[:, :-1] if i % 2 else x)

    calls(200)
    gc.collect()  # garbage of other tests holds None and dtypes
    before, size = [sys.getrefcount(o) for o in held], kibibytes("VmRSS")
    calls(2_500)
    after = [sys.getrefcount(o) for o in held]
    assert [abs(a - b) < 200 for a, b in zip(after, before)] == [True] * len(held), (before, after)
    assert kibibytes("VmRSS") - size < 4096


MEASURE = """
import sys, numpy as np, smm_py
from test_memory import kibibytes
smm_py.set_num_threads(2)
kind, memory, batch, count = sys.argv[1:]
options = {"num_iters": 3, "gradient": "full", "recompute": memory == "recompute"}
module = getattr(smm_py, kind)(dim=64, num_slots=11, **options)
x = np.random.default_rng(0).standard_normal((int(batch), int(count), 64), dtype="float32")
small = module(x[:, :64].copy(), seed=0)
module.backward(small, np.ones_like(small.slots))
before = kibibytes("VmHWM")
out = module(x, seed=0)
grads = module.backward(out, np.ones_like(out.slots))
results = out.slots.nbytes + sum(g.nbytes for g in grads.values())
print((kibibytes("VmHWM") - before) * 1024 - results)
"""


@pytest.mark.parametrize(
    "case",
    [
        "SlotMixture keep 8 16384",
        "SlotMixture recompute 1 300000",
        "SlotAttention keep 1 300000",
        "GaussianMixture keep 1 300000",
        "KMeans keep 1 300000",
    ],
)
def test_peak_of_a_large_call(case):
    """Forward and backward of every step: 64 MiB at most beyond inputs, outputs and gradients."""
    done = run_python("-c", MEASURE, *case.split(), cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    left = 4 * 2**20  # at most, by the small call before, whose memory is used again
    assert -left < int(done.stdout) <= 64 * 2**20, f"{int(done.stdout) / 2**20:.1f} MiB"


@pytest.mark.parametrize("gradient", ["full", "implicit"])
@pytest.mark.parametrize("norm_kv", [True, False])
def test_gradients_do_not_tell_whether_activations_were_saved(gradient, norm_kv):
    """Two images are more than forward saves the inputs' MLP of, one is not: the same bits."""
    module = smm_py.SlotMixture(
        dim=8, hidden_dim=4096, num_slots=3, num_iters=2, norm_kv=norm_kv, gradient=gradient
    )
    x, call = inputs(module, 2, 1400)
    both, d_slots = (
        module(x, **call),
        np.random.default_rng(1).standard_normal((2, 3, 8)).astype("float32"),
    )
    each = [
        module(x[i : i + 1], init={n: v[i : i + 1] for n, v in call["init"].items()})
        for i in range(2)
    ]
    most = smm_py._core.saved_rule(module._spec.config, 3, 2)["most"]
    assert both._call["saved"].size < most // 2 < each[0]._call["saved"].size
    whole = module.backward(both, d_slots)
    for i, out in enumerate(each):
        alone = module.backward(out, d_slots[i : i + 1])
        for name in ("x", "mean", "log_std"):
            assert alone[name][0].tobytes() == whole[name][i].tobytes(), name
        assert np.abs(alone["x"]).max() > 0


def test_nothing_is_kept_on_demand():
    module = build("smm")
    x, call = inputs(module)
    out, kept = module(x, grad=False, **call), module(x, **call)
    assert out._call["saved"] is None and np.array_equal(out.slots, kept.slots)
    with pytest.raises(ValueError, match="out must be of a call with grad=True"):
        module.backward(out, out.slots)
