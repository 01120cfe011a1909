"""The modules in plain PyTorch, broadcast form, one line an equation, with every option.

Float32 errors and speeds are compared with it, and the values of options. It writes a B x K x N x D
tensor in every step, as the code that people copy does.
"""

import math

import torch
import torch.nn.functional as F


def norm(o, p, name, x):
    eps = o.get("norm_eps", 1e-5)
    return F.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"], eps)


def linear(p, name, x):
    return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))


def mlp(p, name, x, activation=torch.relu):
    return linear(p, name + ".2", activation(linear(p, name + ".0", x)))


def update(o, p, u, hidden, last=False):
    if o.get("gru", True):
        gates_in = F.linear(u, p["gru.weight_ih"], p["gru.bias_ih"]).chunk(3, -1)
        gates_hidden = F.linear(hidden, p["gru.weight_hh"], p["gru.bias_hh"]).chunk(3, -1)
        r = torch.sigmoid(gates_in[0] + gates_hidden[0])
        z = torch.sigmoid(gates_in[1] + gates_hidden[1])
        n = torch.tanh(gates_in[2] + r * gates_hidden[2])
        s = (1 - z) * n + z * hidden
    else:
        s = hidden + u
    if {"always": False, "not-last": last, "never": True}[o.get("slot_mlp", "always")]:
        return s
    activation = {"relu": torch.relu, "gelu": F.gelu}[o.get("activation", "relu")]
    return s + mlp(p, "mlp", norm(o, p, "norm_mlp", s), activation)


def normalise(a, real, eps):
    """Weights (B,N,K) over real inputs."""
    a = (a + eps) * real
    return a / a.sum(1, keepdim=True)


def weights(o, a, real, eps):
    """Slot Attention's, from the attention (B,N,K) of one head."""
    kind, count = o.get("update", "mean"), real.sum(1, keepdim=True)
    if kind in ("constant", "sum"):
        return a * real / (count if kind == "constant" else 1)
    total = o.get("eps_in") == "total"
    w = a * real / ((a * real).sum(1, keepdim=True) + eps) if total else normalise(a, real, eps)
    return w * o["num_slots"] / a.shape[-1] if kind == "scaled-mean" else w


def cut(o, t, steps, state, initial):
    """The state before step t, of which the gradient may not pass to the step before."""
    if t < steps - 1 or o["gradient"] == "full":
        return state
    state = [a.detach() for a in state]
    return through(state, initial) if o["gradient"] == "bilevel" else state


def through(state, initial):
    return [a if b is None else a + b - b.detach() for a, b in zip(state, initial)]


def slot_attention(o, p, x, slots, real, active, eps=1e-8):
    heads, initial = o.get("heads", 1), slots
    x = norm(o, p, "norm_input", x)
    k, v = linear(p, "to_k", x).chunk(heads, -1), linear(p, "to_v", x).chunk(heads, -1)
    scale = o.get("scale", k[0].shape[-1] ** -0.5)
    moves = (active | o.get("update_masked", False))[..., None]
    for t in range(o["num_iters"]):
        (slots,) = cut(o, t, o["num_iters"], [slots], [initial])
        normed = norm(o, p, "norm_slots", slots)
        q = linear(p, "to_q", normed).chunk(heads, -1)
        logits = torch.stack([torch.einsum("bnd,bkd->bnk", *kq) * scale for kq in zip(k, q)], -1)
        logits = logits.masked_fill(~active[:, None, :, None], -math.inf)  # (B,N,K,heads)
        slot_dims = (2, 3) if o.get("joint_softmax") else (2,)
        a = torch.exp(logits - logits.amax(slot_dims, keepdim=True))
        a = a / a.sum(slot_dims, keepdim=True)
        w = [weights(o, a[..., i], real, eps) for i in range(heads)]
        u = torch.cat([torch.einsum("bnk,bnd->bkd", *wv) for wv in zip(w, v)], -1)
        u = linear(p, "combine_heads", u) if o.get("combine_heads") else u
        hidden = normed if o.get("norm_hidden") else slots
        slots = torch.where(moves, update(o, p, u, hidden, t == o["num_iters"] - 1), slots)
    if o["gradient"] == "straight-through":
        (slots,) = through([slots], [initial])
    attention = a.sum(-1) if o.get("head_attention") == "sum" else a.mean(-1)
    return {"slots": slots, "attention": attention}


def kmeans(o, p, x, slots, real, active, eps=1e-8):
    for _ in range(o["num_iters"]):
        distance = ((x[:, :, None] - slots[:, None]) ** 2).sum(-1)
        attention = (-distance * o["dim"] ** -0.5).softmax(-1)
        slots = torch.einsum("bnk,bnd->bkd", normalise(attention, real, eps), x)
    return {"slots": slots, "attention": attention}


def uniform(active, like):
    """(B,K): 1 / number of active slots."""
    active = active.to(like.dtype)
    return active / active.sum(1, keepdim=True)


def first_prior(prior, active, like):
    """(B,K): as given, else uniform, over active slots."""
    return uniform(active, like) if prior is None else torch.where(active, prior, 0)


def log_of(prior, active):
    """(B,1,K), minus infinity where a slot does not take part."""
    there = active & (prior > 0)
    return torch.where(there, prior, 1).log()[:, None].masked_fill(~there[:, None], -math.inf)


def mixture(o, p, x, mean, log_std, real, active, eps=1e-8, prior=None):
    """Algorithm 1 of the paper with its options, or the vanilla Gaussian mixture."""
    learned, floor = o["kind"] == "SlotMixture", o.get("var_floor", 1e-4)
    given = o.get("input_mlp", True)
    h = mlp(p, "mlp_input", norm(o, p, "norm_input", x)) if learned and given else x
    h = norm(o, p, "norm_kv", h) if o.get("norm_kv") else h
    k = linear(p, "to_k", h) if learned else h
    initial = [mean, log_std, None if prior is None else torch.where(active, prior, 0)]
    prior = first_prior(prior, active, mean)
    moves = (active | o.get("update_masked", False))[..., None]
    for t in range(o["num_iters"]):
        mean, log_std, prior = cut(o, t, o["num_iters"], [mean, log_std, prior], initial)
        m, s = mean, log_std
        if o.get("slot_norm"):
            m, s = norm(o, p, "norm_slots", torch.cat([mean, log_std], -1)).chunk(2, -1)
        q = linear(p, "to_q", m) if learned else m
        z = (k[:, :, None] - q[:, None]) ** 2 * torch.exp(-2 * s)[:, None]
        density = -0.5 * (z + 2 * s[:, None] + math.log(2 * math.pi)).sum(-1)
        log_prior = log_of(prior, active)
        attention = (o.get("temperature", 1.0) * density + log_prior).softmax(-1)
        log_likelihood = (torch.logsumexp(density + log_prior, -1) * real[..., 0]).sum(1)
        if o.get("prior", "learned") == "learned":
            prior = (attention * real).sum(1) / real.sum(1)
        else:
            prior = uniform(active, mean)
        w = normalise(attention, real, eps)
        u = torch.einsum("bnk,bnd->bkd", w, h)
        hidden = m if o.get("norm_hidden") else mean
        new = update(o, p, u, hidden, t == o["num_iters"] - 1) if learned else u
        mean = torch.where(moves, new, mean)
        variance = (w[..., None] * (h[:, :, None] - mean[:, None]) ** 2).sum(1) + floor
        log_std = torch.where(moves, 0.5 * variance.log(), log_std)
    if o["gradient"] == "straight-through":
        mean, log_std, prior = through([mean, log_std, prior], initial)
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


def reference(o, p, x, mean, log_std, real, active, eps=1e-8, prior=None):
    """The code that the paper's authors released; "fair" is its other class."""
    fair, steps = o["variant"] == "fair", o["num_iters"] + 1
    given = o.get("input_mlp", True)
    h = mlp(p, "mlp_input", norm(o, p, "norm_input", x)) if given else x
    h = norm(o, p, "norm_kv", h)
    k = linear(p, "to_k", h)
    v = k if fair else linear(p, "to_v", h)
    scale = o.get("scale", 1.0 if fair else o["dim"] ** -0.5)
    initial = [mean, log_std, None if prior is None else torch.where(active, prior, 0)]
    prior = first_prior(prior, active, mean)
    for t in range(steps):
        free = prior
        mean, log_std, prior = cut(o, t, steps, [mean, log_std, prior], initial)
        prior = free if fair else prior
        m, s = norm(o, p, "norm_slots", torch.cat([mean, log_std], -1)).chunk(2, -1)
        q, rho = linear(p, "to_q", m), F.linear(s, p["to_q.weight"])
        z = ((k[:, :, None] - q[:, None]) ** 2 * torch.exp(-2 * rho)[:, None]).sum(-1) * scale
        attention = (torch.exp(-z) + eps) * prior[:, None]
        attention = attention / attention.sum(-1, keepdim=True)
        mass = (attention * real).sum(1, keepdim=True)
        w = attention * real / (mass + (mass == 0))
        u = torch.einsum("bnk,bnd->bkd", w, v)
        if fair:
            prior = mass[:, 0] / real.sum(1)
        else:
            prior = w.sum(1) / (w.sum((1, 2))[:, None] + eps)
        new = update(o, p, u, m, t == steps - 1)
        mean = torch.where(active[..., None], new, mean)
        variance = (w[..., None] * ((v[:, :, None] - mean[:, None]) ** 2 + eps)).sum(1)
        found = 0.5 * torch.where(active[..., None], variance, 1).log()
        log_std = torch.where(active[..., None], found, log_std)
    if o["gradient"] == "straight-through":
        mean, log_std, prior = through([mean, log_std, prior], initial)
    both = torch.cat([mean, log_std], -1)
    reduced = o.get("reduce", True)
    return {
        "slots": mlp(p, "to_out", both) if reduced else torch.cat([mean, (2 * log_std).exp()], -1),
        "mean": mean,
        "variance": torch.exp(2 * log_std),
        "prior": prior,
        "attention": attention,
    }


def run(options, parameters, x, state, mask=None, slot_mask=None, prior=None):
    """Outputs of the module that `options` (api.md's arguments and "kind") name."""
    b, n = x.shape[:2]
    slots = state[0].shape[1]
    real = (torch.ones(b, n) if mask is None else mask)[..., None].to(x.dtype)
    active = torch.ones(b, slots, dtype=torch.bool) if slot_mask is None else slot_mask
    form = {"SlotAttention": slot_attention, "KMeans": kmeans}.get(options["kind"], mixture)
    form = reference if options.get("variant") in ("reference", "fair") else form
    eps = options.get("eps", 1e-8)
    given = {} if prior is None else {"prior": prior}
    return form(options, parameters, x, *state, real, active, eps, **given)


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
