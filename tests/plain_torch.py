"""The modules in plain PyTorch, broadcast form, one line an equation.

Float32 errors and speeds are compared with it. It writes a B x K x N x D tensor in every step, as
the code that people copy does.
"""

import math

import torch
import torch.nn.functional as F


def norm(p, name, x):
    return F.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"])


def linear(p, name, x):
    return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))


def mlp(p, name, x):
    return linear(p, name + ".2", torch.relu(linear(p, name + ".0", x)))


def update(p, u, hidden):
    shape = u.shape
    gates_in = F.linear(u, p["gru.weight_ih"], p["gru.bias_ih"]).chunk(3, -1)
    gates_hidden = F.linear(hidden, p["gru.weight_hh"], p["gru.bias_hh"]).chunk(3, -1)
    r = torch.sigmoid(gates_in[0] + gates_hidden[0])
    z = torch.sigmoid(gates_in[1] + gates_hidden[1])
    n = torch.tanh(gates_in[2] + r * gates_hidden[2])
    s = ((1 - z) * n + z * hidden).reshape(shape)
    return s + mlp(p, "mlp", norm(p, "norm_mlp", s))


def normalise(a, real, eps):
    """Weights (B,N,K) over real inputs."""
    a = (a + eps) * real
    return a / a.sum(1, keepdim=True)


def slot_attention(o, p, x, slots, real, active, eps=1e-8):
    x = norm(p, "norm_input", x)
    k, v = linear(p, "to_k", x), linear(p, "to_v", x)
    for t in range(o["num_iters"]):
        if t == o["num_iters"] - 1 and o["gradient"] != "full":
            slots = slots.detach()
        q = linear(p, "to_q", norm(p, "norm_slots", slots))
        logits = torch.einsum("bnd,bkd->bnk", k, q) * o["dim"] ** -0.5
        attention = logits.masked_fill(~active[:, None], -math.inf).softmax(-1)
        u = torch.einsum("bnk,bnd->bkd", normalise(attention, real, eps), v)
        slots = torch.where(active[..., None], update(p, u, slots), slots)
    return {"slots": slots, "attention": attention}


def kmeans(o, p, x, slots, real, active, eps=1e-8):
    for _ in range(o["num_iters"]):
        distance = ((x[:, :, None] - slots[:, None]) ** 2).sum(-1)
        attention = (-distance * o["dim"] ** -0.5).softmax(-1)
        slots = torch.einsum("bnk,bnd->bkd", normalise(attention, real, eps), x)
    return {"slots": slots, "attention": attention}


def mixture(o, p, x, mean, log_std, real, active, eps=1e-8):
    """Algorithm 1 of the paper with its options, or the vanilla Gaussian mixture."""
    learned, floor = o["kind"] == "SlotMixture", o.get("var_floor", 1e-4)
    h = mlp(p, "mlp_input", norm(p, "norm_input", x)) if learned and o.get("input_mlp", True) else x
    h = norm(p, "norm_kv", h) if o.get("norm_kv") else h
    k = linear(p, "to_k", h) if learned else h
    prior = active / active.sum(1, keepdim=True)
    for t in range(o["num_iters"]):
        if t == o["num_iters"] - 1 and o["gradient"] != "full":
            mean, log_std, prior = mean.detach(), log_std.detach(), prior.detach()
        m, s = mean, log_std
        if o.get("slot_norm"):
            m, s = norm(p, "norm_slots", torch.cat([mean, log_std], -1)).chunk(2, -1)
        q = linear(p, "to_q", m) if learned else m
        z = (k[:, :, None] - q[:, None]) ** 2 * torch.exp(-2 * s)[:, None]
        density = -0.5 * (z + 2 * s[:, None] + math.log(2 * math.pi)).sum(-1)
        log_prior = (
            torch.where(active, prior, 1).log()[:, None].masked_fill(~active[:, None], -math.inf)
        )
        attention = (o.get("temperature", 1.0) * density + log_prior).softmax(-1)
        log_likelihood = (torch.logsumexp(density + log_prior, -1) * real[..., 0]).sum(1)
        if o.get("prior", "learned") == "learned":
            prior = (attention * real).sum(1) / real.sum(1)
        w = normalise(attention, real, eps)
        u = torch.einsum("bnk,bnd->bkd", w, h)
        new = update(p, u, mean) if learned else u
        mean = torch.where(active[..., None], new, mean)
        variance = (w[..., None] * (h[:, :, None] - mean[:, None]) ** 2).sum(1) + floor
        log_std = torch.where(active[..., None], 0.5 * variance.log(), log_std)
    variance = torch.exp(2 * log_std)
    slots = torch.cat([mean, variance], -1)
    slots = linear(p, "to_out", slots) if learned and o.get("reduce", True) else slots
    return {
        "slots": slots,
        "mean": mean,
        "variance": variance,
        "prior": prior,
        "attention": attention,
        "log_likelihood": log_likelihood,
    }


def reference(o, p, x, mean, log_std, real, active, eps=1e-8):
    """The released variant; masks are not needed here."""
    h = mlp(p, "mlp_input", norm(p, "norm_input", x)) if o["input_mlp"] else x
    h = norm(p, "norm_kv", h)
    k, v = linear(p, "to_k", h), linear(p, "to_v", h)
    prior = active / active.sum(1, keepdim=True)
    for t in range(o["num_iters"] + 1):
        if t == o["num_iters"] and o["gradient"] != "full":
            mean, log_std, prior = mean.detach(), log_std.detach(), prior.detach()
        m, s = norm(p, "norm_slots", torch.cat([mean, log_std], -1)).chunk(2, -1)
        q, rho = linear(p, "to_q", m), F.linear(s, p["to_q.weight"])
        z = ((k[:, :, None] - q[:, None]) ** 2 * torch.exp(-2 * rho)[:, None]).sum(-1) * o[
            "dim"
        ] ** -0.5
        attention = (torch.exp(-z) + eps) * prior[:, None]
        attention = attention / attention.sum(-1, keepdim=True)
        w = attention / attention.sum(1, keepdim=True)
        u = torch.einsum("bnk,bnd->bkd", w, v)
        prior = w.sum(1) / (w.sum((1, 2))[:, None] + eps)
        mean = update(p, u, m)
        log_std = 0.5 * (w[..., None] * ((v[:, :, None] - mean[:, None]) ** 2 + eps)).sum(1).log()
    return {
        "slots": mlp(p, "to_out", torch.cat([mean, log_std], -1)),
        "mean": mean,
        "variance": torch.exp(2 * log_std),
        "prior": prior,
        "attention": attention,
    }


def run(options, parameters, x, state, mask=None, slot_mask=None):
    """Outputs of the module that `options` (api.md's arguments and "kind") name."""
    b, n = x.shape[:2]
    slots = state[0].shape[1]
    real = (torch.ones(b, n) if mask is None else mask)[..., None].to(x.dtype)
    active = torch.ones(b, slots, dtype=torch.bool) if slot_mask is None else slot_mask
    form = {"SlotAttention": slot_attention, "KMeans": kmeans}.get(options["kind"], mixture)
    form = reference if options.get("variant") == "reference" else form
    eps = options.get("eps", 1e-8)
    return form(options, parameters, x, *state, real, active, eps)


def float32_results(options, parameters, inputs):
    """Outputs and gradients ("d name") of a module on arrays, as float32 arrays."""
    parameters = {k: torch.tensor(v).float().requires_grad_() for k, v in parameters.items()}
    masks = {k: torch.tensor(inputs[k]).bool() for k in ("mask", "slot_mask") if k in inputs}
    x = torch.tensor(inputs["x"]).requires_grad_()
    state = {
        k: torch.tensor(inputs[k]).requires_grad_()
        for k in ("slots", "mean", "log_std")
        if k in inputs
    }
    out = run(options, parameters, x, tuple(state.values()), **masks)
    (out["slots"] * torch.tensor(inputs["d_slots"])).sum().backward()
    grads = {
        "d " + k: torch.zeros_like(v) if v.grad is None else v.grad
        for k, v in {**parameters, "x": x, **state}.items()
    }
    return {k: v.detach().numpy() for k, v in {**out, **grads}.items()}
