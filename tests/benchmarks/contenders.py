"""What is timed, as two calls: forward, and forward with all gradients."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import smm_py.torch as twins
from smm_py.torch.lean import Formulas

from . import peers

OURS, OURS_TORCH, LEAN = "smm_py, NumPy", "smm_py, PyTorch", "smm_py, lean form"
LEAN_COMPILED = LEAN + ", compiled"
RECOMPUTE = "smm_py, recompute=True"
# Of an array's largest number: some hundred roundings of float32, through every step.
TOLERANCE = 1e-4


@dataclass
class Contender:
    """forward() -> slots; both() -> (slots, gradients by name), as anything np.asarray takes."""

    forward: Callable[[], Any]
    both: Callable[[], tuple[Any, dict]]


def installed(package):
    return importlib.util.find_spec(package) is not None


def names(kind, compiled=True):
    """The contenders that this environment has for a kind of module, ours first."""
    forms = peers.FORMS[kind]
    found = [OURS, OURS_TORCH, LEAN, *(f"PyTorch eager, {form}" for form in forms)]
    if compiled:
        found += [f"PyTorch compiled, {form}" for form in forms]
    if installed("jax"):
        found += [f"JAX jit, {form}" for form in forms]
    if kind == "SlotAttention" and installed("slot_attention"):
        found.append("slot-attention")
    return found


def make(name, problem, device="cpu") -> Contender:
    library, _, form = name.partition(", ")
    if name in (OURS, RECOMPUTE):
        return _ours(problem, name == RECOMPUTE)
    if name == "slot-attention":
        return _lucidrains(problem)
    if library == "JAX jit":
        return _jax(problem, form)
    params = {
        n: torch.tensor(v, device=device, requires_grad=True) for n, v in problem.params.items()
    }
    state = [torch.tensor(v, device=device) for v in problem.init.values()]
    if name == OURS_TORCH:
        module = getattr(twins, problem.kind)(**problem.options)
        module.load_state_dict({n: torch.tensor(v) for n, v in problem.module.parameters.items()})
        init = dict(zip(problem.init, state))
        return _torch(problem, dict(module.named_parameters()), lambda x: module(x, init))
    if name in (LEAN, LEAN_COMPILED):
        spec = problem.module._spec

        def lean(p, x, mean, log_std=None):
            formulas = Formulas(spec, x, p, None)
            return formulas.run(mean, log_std, None, None, None, spec.num_iters, False).slots

        if name == LEAN_COMPILED:
            lean = torch.compile(lean, dynamic=False)
        return _torch(problem, params, lambda x: lean(params, x, *state), device)
    function = _plain(peers.Torch(), problem, form)
    if library == "PyTorch compiled":
        function = torch.compile(function, dynamic=False)
    return _torch(problem, params, lambda x: function(params, x, *state), device)


def _plain(ops, problem, form):
    options = problem.options
    return peers.make(
        ops,
        problem.kind,
        form,
        options["num_iters"],
        options["gradient"],
        options.get("temperature"),
    )


def _ours(problem, recompute=False):
    module, x, init, d_slots = problem.module, problem.x, problem.init, problem.d_slots
    if recompute:
        module = type(module)(**problem.options, recompute=True)
        module.parameters = problem.module.parameters

    def both():
        out = module(x, init=init)
        return out.slots, module.backward(out, d_slots)

    return Contender(lambda: module(x, init=init, grad=False).slots, both)


def _torch(problem, params, function, device="cpu"):
    x = torch.tensor(problem.x, device=device)
    d_slots = torch.tensor(problem.d_slots, device=device)

    def forward():
        with torch.no_grad():
            return function(x).float()  # autocast leaves bfloat16

    def both():
        leaf = x.detach().requires_grad_()
        for p in params.values():
            p.grad = None
        slots = function(leaf).float()
        slots.backward(d_slots)
        return slots.detach(), {
            "x": leaf.grad,
            **{n: p.grad for n, p in params.items() if n in problem.params},
        }

    return Contender(forward, both)


def _lucidrains(problem):
    """The package's module: ours, without biases and with slots that start at slots_mu."""
    from slot_attention import SlotAttention

    shape = problem.shape
    module = SlotAttention(num_slots=shape.K, dim=shape.D, iters=shape.T, hidden_dim=shape.H)
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name in ("to_q.bias", "to_k.bias", "to_v.bias"):
            own[name].zero_()
        for name, value in problem.params.items():
            own[name.replace("norm_mlp", "norm_pre_ff")].copy_(torch.tensor(value))
        module.slots_logsigma.fill_(-float("inf"))
    module.slots_mu = torch.nn.Parameter(torch.tensor(problem.init["slots"]), requires_grad=False)
    module.slots_logsigma.requires_grad_(False)
    params = {n.replace("norm_pre_ff", "norm_mlp"): p for n, p in own.items()}
    return _torch(problem, params, module)


def _jax(problem, form):
    import jax

    function = _plain(peers.Jax(), problem, form)
    params = {n: jax.numpy.asarray(v) for n, v in problem.params.items()}
    x, d_slots, *state = map(
        jax.numpy.asarray, (problem.x, problem.d_slots, *problem.init.values())
    )

    @jax.jit
    def gradients(params, x, state, d_slots):
        slots, back = jax.vjp(lambda p, x: function(p, x, *state), params, x)
        grads, dx = back(d_slots)
        return slots, {"x": dx, **grads}

    compiled = jax.jit(function)
    return Contender(
        lambda: jax.block_until_ready(compiled(params, x, *state)),
        lambda: jax.block_until_ready(gradients(params, x, state, d_slots)),
    )


def error(contender, expected, backward):
    """The largest error of any result, relative to that array's largest number in float64.

    A gradient that is nearly zero beside the others is measured by a thousandth of their largest
    number: that of the bias of Slot Attention's norm_slots is exactly 0.
    """
    slots, grads = contender.both() if backward else (contender.forward(), {})
    pairs = [(slots, expected[0], 0.0)]
    largest = max(np.abs(g).max() for g in expected[1].values())
    pairs += [(grads[name], expected[1][name], 1e-3 * largest) for name in expected[1] if backward]
    return max(
        float(np.abs(np.asarray(got) - want).max() / max(np.abs(want).max(), least))
        for got, want, least in pairs
    )


def checked(problem, wanted, backward):
    """(contenders that agree with the core in float64, their errors, why others are absent)."""
    expected = problem.expected()
    found, errors, absent = {}, {}, {}
    for name in wanted:
        if name == "slot-attention" and backward and problem.gradient != "full":
            absent[name] = "differentiates every step only"
            continue
        try:
            contender = make(name, problem)
            errors[name] = error(contender, expected, backward)
        except Exception as reason:  # no compiler, no memory: the others run all the same
            if name in (OURS, OURS_TORCH):
                raise
            absent[name] = f"{type(reason).__name__}: {str(reason).splitlines()[0][:200]}"
            continue
        if errors[name] <= TOLERANCE:
            found[name] = contender
            continue
        absent[name] = (
            f"does not agree with the core in float64: error {errors[name]:.2g}, "
            f"at most {TOLERANCE:g} expected"
        )
        if name.startswith("smm_py"):
            raise SystemExit(
                f"{name} on {problem.kind} {problem.shape} {problem.gradient} {absent[name]}"
            )
    return found, errors, absent
