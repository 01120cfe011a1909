"""Modules and inputs that several tests go through: every variant and option, at odd shapes."""

import numpy as np

import smm_py

BASE = {"num_iters": 2, "dtype": "float64", "gradient": "full"}
CASES = {
    "sa": (smm_py.SlotAttention, dict(dim=7, hidden_dim=9, input_dim=5)),
    "sa-heads-bias": (
        smm_py.SlotAttention,
        dict(dim=6, hidden_dim=9, input_dim=5, heads=3, qkv_bias=True, eps=1e-3, scale=0.7),
    ),
    "sa-bias": (
        smm_py.SlotAttention,
        dict(dim=7, hidden_dim=9, input_dim=9, qkv_bias=True, eps=1e-3),
    ),
    "sa-wide": (
        smm_py.SlotAttention,
        dict(dim=4, hidden_dim=9, input_dim=40),
    ),  # W_k and W_v stay with the inputs
    "smm": (smm_py.SlotMixture, dict(dim=7, hidden_dim=9, input_dim=5)),
    "smm-default": (smm_py.SlotMixture, dict(dim=7, hidden_dim=9, variant="stable")),
    "smm-stable": (
        smm_py.SlotMixture,
        dict(
            dim=7,
            hidden_dim=9,
            input_dim=5,
            norm_kv=True,
            prior="uniform",
            temperature=0.4,
            weight_init="default",
        ),
    ),
    "smm-slot-norm": (
        smm_py.SlotMixture,
        dict(dim=7, hidden_dim=9, slot_norm=True, input_mlp=False, reduce=False, temperature=0.6),
    ),
    "smm-bias": (
        smm_py.SlotMixture,
        dict(dim=7, hidden_dim=9, input_dim=5, qkv_bias=True, eps=1e-3),
    ),
    "sa-norm-eps": (
        smm_py.SlotAttention,
        dict(dim=7, hidden_dim=9, input_dim=5, norm_eps=0.1, precision="float32"),
    ),
    "smm-floors": (
        smm_py.SlotMixture,
        dict(
            dim=7,
            hidden_dim=9,
            norm_kv=True,
            slot_norm=True,
            norm_eps=0.1,
            var_floor=0.05,
            precision="float32",
        ),
    ),
    "reference": (
        smm_py.SlotMixture,
        dict(dim=7, hidden_dim=9, input_dim=5, variant="reference", weight_init="default"),
    ),
    "reference-bare": (
        smm_py.SlotMixture,
        dict(dim=7, hidden_dim=9, input_dim=5, variant="reference", input_mlp=False, reduce=False),
    ),
    "reference-bias": (
        smm_py.SlotMixture,
        dict(dim=7, hidden_dim=9, input_dim=5, variant="reference", qkv_bias=True, scale=0.3),
    ),
    "sa-recompute": (smm_py.SlotAttention, dict(dim=7, hidden_dim=9, input_dim=5, recompute=True)),
    "smm-recompute": (
        smm_py.SlotMixture,
        dict(dim=7, hidden_dim=9, input_dim=5, norm_kv=True, recompute=True),
    ),
    "reference-recompute": (
        smm_py.SlotMixture,
        dict(dim=7, hidden_dim=9, input_dim=5, variant="reference", recompute=True),
    ),
    # options of other implementations, each alone and in pairs
    **{
        f"sa-{name}": (smm_py.SlotAttention, {**dict(dim=6, hidden_dim=9, input_dim=5), **own})
        for name, own in {
            "qkv-wide": dict(qkv_dim=9, heads=3),
            "qkv-narrow": dict(qkv_dim=3),
            "combine-heads": dict(qkv_dim=8, heads=2, combine_heads=True, qkv_bias=True),
            "joint-softmax": dict(heads=3, joint_softmax=True),
            "attention-sum": dict(heads=2, head_attention="sum"),
            "eps-in-total": dict(eps=0.3, eps_in="total"),
            "update-scaled-mean": dict(update="scaled-mean", num_slots=5),
            "update-constant": dict(update="constant"),
            "update-sum": dict(update="sum", scale=0.2),
            "no-gru": dict(gru=False),
            "norm-hidden": dict(norm_hidden=True),
            "mlp-not-last": dict(slot_mlp="not-last"),
            "mlp-never": dict(slot_mlp="never"),
            "gelu": dict(activation="gelu"),
            "update-masked": dict(update_masked=True, eps=1e-3),
            "no-gru-norm-hidden-qkv-wide": dict(
                gru=False, norm_hidden=True, qkv_dim=8, combine_heads=True
            ),
            "joint-softmax-update-masked": dict(
                heads=2, joint_softmax=True, update_masked=True, eps=1e-3, head_attention="sum"
            ),
            "eps-in-total-update-masked": dict(
                eps=0.3, eps_in="total", update_masked=True, qkv_dim=4, combine_heads=True
            ),
            "update-constant-no-gru": dict(update="constant", gru=False, slot_mlp="never", heads=2),
            "qkv-narrow-gelu": dict(
                qkv_dim=4, heads=2, activation="gelu", slot_mlp="not-last", recompute=True
            ),
        }.items()
    },
    **{
        f"smm-{name}": (smm_py.SlotMixture, {**dict(dim=7, hidden_dim=9, input_dim=5), **own})
        for name, own in {
            "no-gru": dict(gru=False),
            "norm-hidden": dict(norm_hidden=True, slot_norm=True),
            "mlp-not-last": dict(slot_mlp="not-last"),
            "mlp-never": dict(slot_mlp="never"),
            "gelu": dict(activation="gelu"),
            "update-masked": dict(update_masked=True, eps=1e-3),
            "no-gru-update-masked": dict(
                gru=False, norm_hidden=True, slot_norm=True, update_masked=True, eps=1e-3
            ),
        }.items()
    },
    "reference-no-gru-gelu": (
        smm_py.SlotMixture,
        dict(dim=7, hidden_dim=9, variant="reference", gru=False, activation="gelu"),
    ),
    "reference-fair": (
        smm_py.SlotMixture,
        dict(dim=7, hidden_dim=9, input_dim=5, variant="fair", input_mlp=False, scale=0.3),
    ),
    "reference-fair-mlp-not-last": (
        smm_py.SlotMixture,
        dict(dim=7, hidden_dim=9, variant="fair", slot_mlp="not-last", scale=0.3, qkv_bias=True),
    ),
    "kmeans": (smm_py.KMeans, dict(dim=5, scale=0.5)),
    "gmm-recompute": (smm_py.GaussianMixture, dict(dim=5, temperature=0.7, recompute=True)),
    "gmm": (smm_py.GaussianMixture, dict(dim=5, temperature=0.7)),
    "gmm-floor": (smm_py.GaussianMixture, dict(dim=5, var_floor=0.05)),
    "gmm-uniform": (smm_py.GaussianMixture, dict(dim=5, prior="uniform")),
}
# those whose steps are alike, so that runs one after another are one run
STEPWISE = [
    name
    for name, (_, own) in CASES.items()
    if not name.startswith("reference") and own.get("slot_mlp") != "not-last"
]
# where states may start at inputs
STARTS = [name for name, (_, own) in CASES.items() if own.get("qkv_dim", own["dim"]) == own["dim"]]


def build(name, **changes):
    kind, options = CASES[name]
    if kind is smm_py.SlotMixture:
        options = {"variant": "paper", **options}
    module = kind(**{"num_slots": 3, **BASE, **options, **changes})
    rng = np.random.default_rng(11)
    for key, value in module.parameters.items():  # no parameter at 0 or 1, where errors hide
        module.parameters[key] = value + 0.1 * rng.standard_normal(value.shape).astype(value.dtype)
    return module


def inputs(module, batch=2, count=37, slots=3, masks=False, indices=False, seed=0):
    """x and the keyword arguments of a call."""
    spec = module._spec
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, count, spec.input_dim)).astype(spec.dtype)
    call = {
        "init": {
            n: rng.standard_normal((batch, slots, spec.dim)).astype(spec.dtype)
            for n in spec.state_names
        }
    }
    if "log_std" in call["init"]:
        call["init"]["log_std"] *= np.asarray(0.2, spec.dtype)
        call["init"]["prior"] = rng.uniform(0.2, 1, (batch, slots)).astype(spec.dtype)
    if masks:
        call["mask"] = rng.random((batch, count)) < 0.7
        call["slot_mask"] = np.arange(slots) != (np.arange(batch)[:, None] + 1) % slots
    if indices:
        call["init"].pop(spec.state_names[0])
        real = call.get("mask", np.ones((batch, count), bool))
        call["init"]["indices"] = np.stack([rng.choice(np.flatnonzero(r), slots) for r in real])
    return x, call


def attention_total(module):
    """Sum over slots of the attention of an input."""
    spec = module._spec
    of_all_heads = 1 if spec.joint_softmax else spec.heads
    return of_all_heads if spec.head_attention == "sum" else of_all_heads / spec.heads


GRADED = ("slots", "mean", "variance", "prior", "log_likelihood", "attention")


def output_gradients(out, rng):
    """A gradient of every output that the call has, as `backward` takes them."""
    there = {name: getattr(out, name) for name in GRADED}
    return {
        f"d_{name}": rng.standard_normal(value.shape).astype(value.dtype)
        for name, value in there.items()
        if value is not None
    }


def weighted(out, d):
    """Sum of the outputs times their gradients."""
    return float(sum((getattr(out, name[2:]) * value).sum() for name, value in d.items()))


def everything(module, x, call, seed=1):
    """Outputs and gradients of one call, by name."""
    out = module(x, attention=True, **call)
    d_slots = np.random.default_rng(seed).standard_normal(out.slots.shape).astype(out.slots.dtype)
    result = {
        n: getattr(out, n)
        for n in ("slots", "mean", "variance", "prior", "log_likelihood", "attention")
    }
    result = {n: v for n, v in result.items() if v is not None}
    return {**result, **{"d " + n: v for n, v in module.backward(out, d_slots).items()}}
