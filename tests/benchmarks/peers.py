"""Both modules as people write them, from the operations of PyTorch or JAX.

"broadcast" writes the differences of every input and slot, a B x N x K x D array, as the released
Slot Mixture Module does; "expanded" multiplies the squares out into matrix products. Slot Attention
("product") has no distances.
"""

from __future__ import annotations

FORMS = {"SlotMixture": ("broadcast", "expanded"), "SlotAttention": ("product",)}
EPS, FLOOR, LN_EPS = 1e-8, 1e-4, 1e-5


class Torch:
    """Operations that the two libraries name differently."""

    def __init__(self):
        import torch

        self.torch, self.F = torch, torch.nn.functional
        self.exp, self.log, self.relu, self.softmax = (
            torch.exp,
            torch.log,
            torch.relu,
            torch.softmax,
        )

    def linear(self, x, weight, bias=None):
        return self.F.linear(x, weight, bias)

    def norm(self, x, weight, bias):
        return self.F.layer_norm(x, x.shape[-1:], weight, bias, LN_EPS)

    def gru(self, p, x, hidden):
        weights = (p[f"gru.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        return self.torch.gru_cell(x.flatten(0, 1), hidden.flatten(0, 1), *weights).view(x.shape)

    def stop(self, *arrays):
        return [a.detach() for a in arrays]

    def pair(self, a, b):
        return self.torch.cat([a, b], -1)


class Jax:
    def __init__(self):
        import jax
        from jax import numpy

        self.jax, self.numpy = jax, numpy
        self.exp, self.log, self.relu, self.softmax = (
            numpy.exp,
            numpy.log,
            jax.nn.relu,
            jax.nn.softmax,
        )

    def linear(self, x, weight, bias=None):
        return x @ weight.T if bias is None else x @ weight.T + bias

    def norm(self, x, weight, bias):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / self.numpy.sqrt((centred**2).mean(-1, keepdims=True) + LN_EPS) * weight + bias
        )

    def gru(self, p, x, hidden):
        split = self.numpy.split
        i, h = (
            split(self.linear(a, p[f"gru.weight_{s}"], p[f"gru.bias_{s}"]), 3, -1)
            for a, s in ((x, "ih"), (hidden, "hh"))
        )
        r, z = self.jax.nn.sigmoid(i[0] + h[0]), self.jax.nn.sigmoid(i[1] + h[1])
        return (1 - z) * self.numpy.tanh(i[2] + r * h[2]) + z * hidden

    def stop(self, *arrays):
        return [self.jax.lax.stop_gradient(a) for a in arrays]

    def pair(self, a, b):
        return self.numpy.concatenate([a, b], -1)


def make(ops, kind, form, iters, gradient, temperature=1.0):
    """A function (parameters by name, x (B,N,D), *initial state (B,K,D)) -> slots (B,K,D)."""

    def norm(p, name, x):
        return ops.norm(x, p[f"{name}.weight"], p[f"{name}.bias"])

    def mlp(p, name, x):
        hidden = ops.relu(ops.linear(x, p[f"{name}.0.weight"], p[f"{name}.0.bias"]))
        return ops.linear(hidden, p[f"{name}.2.weight"], p[f"{name}.2.bias"])

    def update(p, found, hidden):
        slots = ops.gru(p, found, hidden)
        return slots + mlp(p, "mlp", norm(p, "norm_mlp", slots))

    def weights(attention):
        attention = attention + EPS
        return (attention / attention.sum(1)[:, None]).mT

    def slot_attention(p, x, slots):
        x = norm(p, "norm_input", x)
        k, v = ops.linear(x, p["to_k.weight"]), ops.linear(x, p["to_v.weight"])
        for t in range(iters):
            if t == iters - 1 and gradient == "implicit":
                (slots,) = ops.stop(slots)
            q = ops.linear(norm(p, "norm_slots", slots), p["to_q.weight"]) * k.shape[-1] ** -0.5
            slots = update(p, weights(ops.softmax(k @ q.mT, -1)) @ v, slots)
        return slots

    def distances(k, k2, q, s):
        precision = ops.exp(-2 * s)
        if form == "broadcast":
            return ((k[:, :, None] - q[:, None]) ** 2 * precision[:, None]).sum(-1)
        return (
            k2 @ precision.mT - 2 * (k @ (q * precision).mT) + (q * q * precision).sum(-1)[:, None]
        )

    def variances(w, h, h2, found, mean):
        if form == "broadcast":
            return (w[..., None] * (h[:, None] - mean[:, :, None]) ** 2).sum(2)
        return w @ h2 - 2 * found * mean + mean * mean

    def slot_mixture(p, x, mean, log_std):
        h = mlp(p, "mlp_input", norm(p, "norm_input", x))
        k = ops.linear(h, p["to_k.weight"])
        h2, k2 = (h * h, k * k) if form == "expanded" else (None, None)
        log_prior = 0 * mean[..., 0]  # a constant has no effect
        for t in range(iters):
            if t == iters - 1 and gradient == "implicit":
                mean, log_std, log_prior = ops.stop(mean, log_std, log_prior)
            z = distances(k, k2, ops.linear(mean, p["to_q.weight"]), log_std)
            gamma = ops.softmax(
                -temperature * (0.5 * z + log_std.sum(-1)[:, None]) + log_prior[:, None], -1
            )
            log_prior = ops.log(gamma.mean(1))
            w = weights(gamma)
            found = w @ h
            mean = update(p, found, mean)
            log_std = 0.5 * ops.log(variances(w, h, h2, found, mean) + FLOOR)
        return ops.linear(
            ops.pair(mean, ops.exp(2 * log_std)), p["to_out.weight"], p["to_out.bias"]
        )

    return slot_attention if kind == "SlotAttention" else slot_mixture
