"""The set predictor that the paper's authors released, so that their weights give their results.

It differs from the paper (docs/math.md, "reference"): a two-block transformer mixes two learned
tokens with the inputs; from the mixed tokens come mean and spread of the initial slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from smm_py.torch import SlotMixture

from ..data.properties import GROUPS
from .model import merged

DIM = 64
UNUSED = "mean_mu", "mean_logsigma", "logstd_mu", "logstd_logsigma"  # the mixture's initial state


class Attention(nn.Module):
    """Multi-head self-attention without biases in queries, keys and values."""

    def __init__(self, dim=DIM, heads=4):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x):
        q, k, v = (
            m(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for m in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, dim=DIM):
        super().__init__()
        self.net = nn.ModuleList(
            [nn.ModuleList([nn.Linear(dim, 4 * dim)]), nn.Identity(), nn.Linear(4 * dim, dim)]
        )

    def forward(self, x):
        return self.net[2](F.gelu(self.net[0][0](x)))


class Block(nn.Module):
    """Two self-attentions and a feed-forward layer, each after a LayerNorm."""

    def __init__(self, dim=DIM):
        super().__init__()
        self.attn1, self.attn2, self.ff = Attention(dim), Attention(dim), FeedForward(dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x):
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x))
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    def __init__(self, dim=DIM):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.transformer_blocks = nn.ModuleList([Block(dim), Block(dim)])

    def forward(self, x):
        x = self.norm(x)
        for block in self.transformer_blocks:
            x = block(x)
        return x


class ReleasedModule(nn.Module):
    """Transformer, initial slots, and the slot mixture's `reference` variant."""

    def __init__(self, dim=DIM, slots=10, num_iters=7):
        super().__init__()
        self.slots = slots
        self.mu, self.logsigma = (nn.Parameter(torch.zeros(1, 1, dim)) for _ in range(2))
        self.transf = Transformer(dim)
        self.mu_init, self.sigma_init = (
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, 2 * dim))
            for _ in range(2)
        )
        sizes = {"dim": dim, "num_slots": slots, "num_iters": num_iters, "hidden_dim": 2 * dim}
        options = {"variant": "reference", "input_mlp": False, "norm_kv": False, "slot_norm": False}
        prior = {"prior": "learned", "temperature": 1.0, "start": "gaussian"}
        self.mixture = SlotMixture(**sizes, **options, **prior)
        for name in UNUSED:
            getattr(self.mixture, name).requires_grad_(False)  # it is always given

    def forward(self, inputs, noise, num_iters=None):
        """Slots (B, K, D), attention (B, N, K) of inputs (B, N, D), normal noise (B, K, 2D)."""
        learned = (token.expand(len(inputs), -1, -1) for token in (self.mu, self.logsigma))
        tokens = self.transf(torch.cat([*learned, inputs], 1))
        state = self.mu_init(tokens[:, :1]) + self.sigma_init(tokens[:, 1:2]).exp() * noise
        mean, log_std = (part.contiguous() for part in state.chunk(2, -1))
        init, inputs = {"mean": mean, "log_std": log_std}, tokens[:, 2:].contiguous()
        return self.mixture(inputs, init, num_iters=num_iters, return_attention=True)


class Same(nn.Module):
    """The padding of a strided 5 x 5 convolution in TensorFlow: one before, three after."""

    def forward(self, x):
        return F.pad(x, (1, 3, 1, 3))


class ReleasedPredictor(nn.Module):
    """Pictures (B, 3, 128, 128) in [-1, 1] to predictions (B, 10, 19)."""

    MIXTURE = {
        "norm_input": "norm_kv",
        "norm_mu": "norm_mlp",
        "gru_mu": "gru",
        "mlp_mu": "mlp",
        "mlp_out": "to_out",
        **{name: name for name in ("norm_slots", "to_q", "to_k", "to_v")},
    }

    merge = False

    def __init__(self):
        super().__init__()
        layers = [nn.Conv2d(3, DIM, 5, padding=2), nn.ReLU()]
        for _ in range(2):
            layers += [Same(), nn.Conv2d(DIM, DIM, 5, 2), nn.ReLU()]
        layers += [nn.Conv2d(DIM, DIM, 5, padding=2), nn.ReLU()]
        self.encoder_cnn = nn.Module()
        self.encoder_cnn.layers = nn.Sequential(*layers)
        self.encoder_pos = nn.Module()
        self.encoder_pos.linear = nn.Linear(4, DIM)
        self.encoder_pos.register_buffer("grid", torch.zeros(1, 32, 32, 4))
        self.layer_norm = nn.LayerNorm(DIM)
        self.mlp = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, DIM))
        self.slot_attention = ReleasedModule()
        self.mlp_coords = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, 3))
        self.mlp_prop = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, 16))

    @classmethod
    def rename(cls, weights):
        """The released file's names to this model's."""
        renamed = {}
        for name, value in weights.items():
            parts = name.split(".")
            if parts[0] == "slot_attention" and parts[1] in cls.MIXTURE:
                parts[1:2] = ["mixture", cls.MIXTURE[parts[1]]]
            renamed[".".join(parts)] = value
        for name in UNUSED:  # not in the file
            renamed.setdefault(f"slot_attention.mixture.{name}", torch.zeros(DIM))
        return renamed

    def inputs(self, image):
        """What the slot module gets, (B, 1024, D), column by column as in the released code."""
        features = self.encoder_cnn.layers(image).permute(0, 2, 3, 1)
        features = features + self.encoder_pos.linear(self.encoder_pos.grid)
        return self.mlp(self.layer_norm(features.transpose(1, 2).flatten(1, 2)))

    def forward(
        self, image, seeds=None, num_iters=None, return_attention=False, noise=None, num_slots=None
    ):
        if noise is None:
            seeds = [None] * len(image) if seeds is None else seeds
            noise = torch.stack([self.noise(s, num_slots) for s in seeds]).to(image.device)
        slots, attention = self.slot_attention(self.inputs(image), noise, num_iters)
        raw = self.mlp_prop(slots)
        groups = [raw[..., g.start - 3 : g.stop - 3].softmax(-1) for g in GROUPS.values()]
        place, presence = (
            torch.sigmoid(self.mlp_coords(slots)) * 2 - 1,
            torch.sigmoid(raw[..., 15:]),
        )
        prediction = torch.cat([place, *groups, presence], -1)
        prediction = merged(prediction, attention) if self.merge else prediction
        if not return_attention:
            return prediction
        return prediction, attention.unflatten(1, (32, 32)).transpose(1, 2).flatten(1, 2)

    def noise(self, seed, slots=None):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return torch.randn(slots or self.slot_attention.slots, 2 * DIM, generator=generator)
