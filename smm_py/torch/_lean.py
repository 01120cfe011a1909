"""The modules in PyTorch operations, for tensors that the C core does not serve (other devices).

Formulas as in docs/math.md. Squared distances and variances are expanded into matrix products about
a point amid each image's data, so that nothing of size B x K x N x D is ever made. float32 cancels
only where clusters lie more than some hundred of their standard deviations apart: variances and
likelihoods then lose digits that the C core keeps.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from .._spec import Spec

VAR_FLOOR = 1e-4
NORM_EPS = 1e-5
DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Result(NamedTuple):
    """Outputs of a module: B images, N inputs, K slots of width D; see `smm_py.Output`."""

    slots: Tensor
    mean: Optional[Tensor] = None
    variance: Optional[Tensor] = None
    prior: Optional[Tensor] = None
    log_likelihood: Optional[Tensor] = None
    attention: Optional[Tensor] = None
    iterations: Optional[Tensor] = None


def run(
    spec: Spec, x, params, state0, state1, indices, mask, slot_mask, num_iters, attention, form=None
) -> Result:
    """Run a module.

    Parameters
    ----------
    x : (B, N, input_dim). params : dict of name -> tensor, as `_spec.parameter_shapes` names them.
    state0, state1 : (B, K, D) slots and None, or mean and log_std; state0 None with indices (B, K).
    mask : (B, N) bool or None. slot_mask : (B, K) bool or None. attention : whether to return it.
    form : what makes the `Formulas`, in place of that class.
    """
    x = x.to(DTYPES[spec.dtype]) if spec.bfloat16_inputs else x
    form = (form or Formulas)(spec, x, params, mask)
    return form.go(state0, state1, indices, slot_mask, num_iters, attention)


def _linear(p, name, x):
    return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))


def _norm(p, name, x):
    return F.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"], NORM_EPS)


def _mlp(p, name, x):
    return _linear(p, name + ".2", F.relu(_linear(p, name + ".0", x)))


def _log(prior):
    """Logarithm of a prior; that of 0 has no gradient."""
    dead = prior == 0
    return prior.masked_fill(dead, 1).log().masked_fill(dead, -math.inf)


class Formulas:
    """One call in PyTorch operations: the inputs' side is computed here, `go` iterates.

    A module with other formulas is a subclass of `SlotMixture`, say, whose `formulas` is a subclass of
    this class, or a method that makes one of (spec, x, parameters, mask). It runs on every device in
    place of the core. What such a subclass may replace:

    e_step(mean, log_std, prior) : responsibilities (B, N, K), the GRU's hidden state, and the log
        prior plus log density (B, N, K).
    new_prior(gamma) : the prior (B, K) of responsibilities.
    """

    def __init__(self, spec, x, p, mask):
        self.spec, self.p = spec, p
        self.real = None if mask is None else mask[..., None]
        if mask is not None:
            # masked rows keep their value for the attention alone: no gradient, and no NaN in a sum
            x = torch.where(self.real, x, torch.nan_to_num(x.detach()))
        h = x
        if spec.kind == "slot_attention":
            h = _norm(p, "norm_input", x)
        elif spec.kind == "slot_mixture":
            h = _mlp(p, "mlp_input", _norm(p, "norm_input", x)) if spec.input_mlp else x
            h = _norm(p, "norm_kv", h) if spec.norm_kv or spec.is_reference else h
        self.keys = _linear(p, "to_k", h) if spec.has_network else h
        own = spec.kind == "slot_attention" or spec.is_reference
        self.values = _linear(p, "to_v", h) if own else h
        self.count = x.shape[1] if mask is None else mask.sum(1)[:, None]
        # constants of the expansions: a point amid the data, which no result depends on
        self.key_centre = self._mean(self.keys)
        self.value_centre = self._mean(self.values)

    def _mean(self, a):
        a = a.detach()
        if self.real is None:
            return a.mean(1, keepdim=True)
        return torch.where(self.real, a, 0).sum(1, keepdim=True) / self.count[..., None]

    def go(self, state0, state1, indices, slot_mask, num_iters, attention):
        spec = self.spec
        if indices is not None:
            rows = indices[..., None].expand(-1, -1, spec.dim)
            state0 = self.values.detach().gather(1, rows)
        self.active = (
            torch.ones(state0.shape[:2], dtype=torch.bool, device=state0.device)
            if slot_mask is None
            else slot_mask
        )
        uniform = self.active.to(self.keys.dtype) / self.active.sum(1, keepdim=True)
        state, steps = (state0, state1, uniform), num_iters + spec.is_reference
        moving = torch.ones(len(uniform), dtype=torch.bool, device=uniform.device)
        iterations = torch.full_like(moving, 1 - spec.is_reference, dtype=torch.int64)
        with torch.set_grad_enabled(torch.is_grad_enabled() and spec.gradient == "full"):
            for _ in range(steps - 1):
                new, *_ = self.step(*state)
                iterations = iterations + moving
                if spec.tol:
                    still = self.movement(new[0], state[0]) > spec.tol
                    new = [
                        a if a is None else torch.where(moving.view(-1, *[1] * (a.dim() - 1)), a, b)
                        for a, b in zip(new, state)
                    ]
                    moving = moving & still
                state = new
        if spec.gradient != "full":
            state = [a if a is None else a.detach() for a in state]
        (mean, log_std, prior), gamma, density = self.step(*state)
        if spec.is_reference:
            prior = uniform / (1 + spec.eps * uniform.amax(1, keepdim=True))
        elif spec.prior == "uniform":
            prior = uniform
        if spec.gradient == "straight-through":
            mean = mean + (state0 - state0.detach())
            log_std = None if log_std is None else log_std + (state1 - state1.detach())
        return self.result(mean, log_std, prior, gamma if attention else None, density, iterations)

    def step(self, mean, log_std, prior):
        """The next state, and this step's responsibilities and log prior + log density."""
        gamma, hidden, density = self.e_step(mean, log_std, prior)
        mean, log_std = self.m_step(gamma, hidden, mean, log_std)
        if self.spec.prior == "learned" and self.spec.is_mixture and not self.spec.is_reference:
            prior = self.new_prior(gamma)
        return (mean, log_std, prior), gamma, density

    def movement(self, new, old):
        """The largest movement of an image's active slots, root mean square over channels: (B,)."""
        moved = (new - old).detach().square().mean(-1).sqrt()
        return torch.where(self.active, moved, 0).amax(1)

    def new_prior(self, gamma):
        """Mean responsibility of each slot (B,K)."""
        return self._real(gamma).sum(1) / self.count

    def _real(self, gamma):
        return gamma if self.real is None else torch.where(self.real, gamma, 0)

    def e_step(self, mean, log_std, prior):
        """Responsibilities (B,N,K), the GRU's hidden state, log prior + log density where there is one."""
        spec, p = self.spec, self.p
        if spec.kind == "slot_attention":
            return self.attend(_linear(p, "to_q", _norm(p, "norm_slots", mean))), mean, None
        q, s = mean, log_std
        if spec.slot_norm or spec.is_reference:
            q, s = _norm(p, "norm_slots", torch.cat([mean, log_std], -1)).chunk(2, -1)
        hidden = q if spec.is_reference else mean
        q = _linear(p, "to_q", q) if spec.has_network else q
        if spec.is_reference:
            s = F.linear(s, p["to_q.weight"])
        distance = self.distances(q, s)
        inactive = ~self.active[:, None]
        if spec.kind == "kmeans":
            return (
                (-spec.scale * distance).masked_fill(inactive, -math.inf).softmax(-1),
                hidden,
                None,
            )
        if spec.is_reference:
            gamma = (torch.exp(-spec.scale * distance) + spec.eps) * prior[:, None]
            return gamma / gamma.sum(-1, keepdim=True), hidden, None
        log_det = s.sum(-1)[:, None]
        log_prior = _log(prior)[:, None].masked_fill(inactive, -math.inf)
        gamma = (-spec.temperature * (0.5 * distance + log_det) + log_prior).softmax(-1)
        density = log_prior - 0.5 * (distance + spec.dim * math.log(2 * math.pi)) - log_det
        return gamma, hidden, density

    def attend(self, q):
        """Slot Attention's responsibilities, one map for each head: (B,h,N,K)."""
        keys, q = (a.unflatten(-1, (self.spec.heads, -1)).transpose(1, 2) for a in (self.keys, q))
        logits = keys @ q.transpose(-1, -2) * self.spec.scale
        return logits.masked_fill(~self.active[:, None, None], -math.inf).softmax(-1)

    def distances(self, q, log_std):
        """sum_d (k - q)^2 e^{-2 log_std}, (B,N,K), by three products."""
        keys, q = self.keys - self.key_centre, q - self.key_centre
        if log_std is None:
            return (keys * keys).sum(-1, keepdim=True) - 2 * keys @ q.mT + (q * q).sum(-1)[:, None]
        weight = torch.exp(-2 * log_std)
        return (
            (keys * keys) @ weight.mT
            - 2 * keys @ (q * weight).mT
            + (q * q * weight).sum(-1)[:, None]
        )

    def weights(self, gamma):
        """Responsibilities normalised over real inputs; a slot without any (inactive) gets zeros."""
        w = gamma if self.spec.is_reference else gamma + self.spec.eps
        if self.real is not None:
            w = torch.where(self.real if w.dim() == 3 else self.real[:, None], w, 0)
        total = w.sum(-2, keepdim=True)
        if self.spec.is_reference:
            total = total + (total == 0)
        return w / total

    def m_step(self, gamma, hidden, mean, log_std):
        spec = self.spec
        w = self.weights(gamma)
        if spec.kind == "slot_attention":
            values = self.values.unflatten(-1, (spec.heads, -1)).transpose(1, 2)
            found = (w.mT @ values).transpose(1, 2).flatten(-2)
            return self.keep(self.update(found, hidden), mean), None
        values = self.values - self.value_centre
        first = w.mT @ values
        found = first + self.value_centre
        new = self.update(found, hidden) if spec.has_network else found
        if not spec.is_mixture:
            return self.keep(new, mean), None
        variance = (w.mT @ (values * values) - first * first).clamp_min(0) + (found - new) ** 2
        floor = spec.eps if spec.is_reference else VAR_FLOOR
        return self.keep(new, mean), self.keep(0.5 * torch.log(variance + floor), log_std)

    def keep(self, new, old):
        return torch.where(self.active[..., None], new, old)

    def update(self, m, hidden):
        """GRU and residual MLP (PyTorch's GRUCell, written out for any number of leading dimensions)."""
        p = self.p
        i = F.linear(m, p["gru.weight_ih"], p["gru.bias_ih"]).chunk(3, -1)
        g = F.linear(hidden, p["gru.weight_hh"], p["gru.bias_hh"]).chunk(3, -1)
        r, z = torch.sigmoid(i[0] + g[0]), torch.sigmoid(i[1] + g[1])
        n = torch.tanh(i[2] + r * g[2])
        h = n + z * (hidden - n)
        return h + _mlp(p, "mlp", _norm(p, "norm_mlp", h))

    def result(self, mean, log_std, prior, gamma, density, iterations):
        spec, p = self.spec, self.p
        if gamma is not None:
            gamma = gamma.mean(1) if gamma.dim() == 4 else gamma
            gamma = gamma if self.real is None else torch.where(self.real, gamma, gamma.detach())
        if not spec.is_mixture:
            return Result(mean, attention=gamma, iterations=iterations)
        variance = torch.exp(2 * log_std)
        slots = torch.cat([mean, variance], -1)
        if spec.has_network and spec.reduce:
            slots = (
                _mlp(p, "to_out", torch.cat([mean, log_std], -1))
                if spec.is_reference
                else _linear(p, "to_out", slots)
            )
        if density is not None:
            density = torch.logsumexp(density, -1, keepdim=True)
            density = self._real(density).sum((1, 2))
        return Result(slots, mean, variance, prior.to(mean.dtype), density, gamma, iterations)
