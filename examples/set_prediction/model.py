"""The set predictor: convolutions, a slot module, and a small MLP for each slot's properties."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smm_py.torch as slots_torch

from ..data.properties import COORDINATES, GROUPS, REAL, WIDTH


class PositionEmbedding(nn.Module):
    """Adds a linear map of each pixel's distances to the four borders (Locatello et al. 2020)."""

    def __init__(self, channels):
        super().__init__()
        self.linear = nn.Linear(4, channels)

    def forward(self, features):  # (B, C, H, W)
        height, width = features.shape[2:]
        y = torch.linspace(0, 1, height, device=features.device)[:, None].expand(height, width)
        x = torch.linspace(0, 1, width, device=features.device).expand(height, width)
        grid = torch.stack([y, x, 1 - y, 1 - x], -1)
        return features + self.linear(grid).permute(2, 0, 1)


def make_slots(config):
    """The slot module of a configuration.

    "stable" is the setting that learns (docs/training.md): normalised features, temperature D^-1/2,
    a uniform prior and means that start at inputs. "paper" is Algorithm 1 as printed.
    """
    common = dict(dim=config.dim, num_slots=config.slots, num_iters=config.train_iters)
    if config.model == "sa":
        return slots_torch.SlotAttention(**common, hidden_dim=config.hidden, start=config.start)
    if config.model == "smm":
        stable = dict(norm_kv=True, temperature=config.dim**-0.5, prior="uniform")
        return slots_torch.SlotMixture(**common, hidden_dim=config.hidden, start=config.start,
                                       **(stable if config.variant == "stable" else {}))
    if config.model == "kmeans":
        return slots_torch.KMeans(**common, gradient="implicit")
    return slots_torch.GaussianMixture(**common, temperature=config.dim**-0.5, gradient="implicit")


class SetPredictor(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] to predictions (B, K, 19): see `examples.data.properties`.

    Encoder as in the paper's Table 5, with `config.strides` (fewer layers and larger strides in the
    tiny preset); coordinates come out in [-1, 1], each property as a distribution, presence last.
    """

    def __init__(self, config):
        super().__init__()
        channels = [3, *[config.dim] * len(config.strides)]
        self.encoder = nn.Sequential(*(
            layer for i, stride in enumerate(config.strides)
            for layer in (nn.Conv2d(channels[i], channels[i + 1], 5, stride, 2), nn.ReLU())))
        self.position = PositionEmbedding(config.dim)
        self.norm = nn.LayerNorm(config.dim)
        self.mlp = nn.Sequential(nn.Linear(config.dim, config.dim), nn.ReLU(), nn.Linear(config.dim, config.dim))
        if config.model == "smm" and config.variant == "stable":  # the module has its own norm and MLP
            self.norm = self.mlp = nn.Identity()
        self.slots = make_slots(config)
        self.head = nn.Sequential(nn.Linear(self.slots._spec.slot_dim, config.dim), nn.ReLU(),
                                  nn.Linear(config.dim, WIDTH))
        self.encoder = self.encoder.to(memory_format=torch.channels_last)  # faster convolutions on CPUs
        self.precision = config.precision

    def features(self, image) -> Tensor:
        """(B, N, D), N = (S / all strides)^2, row by row."""
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            features = self.encoder(image)
        features = self.position(features.float()).flatten(2).transpose(1, 2)
        return self.mlp(self.norm(features))

    def forward(self, image, seeds=None, num_iters=None, return_attention=False):
        """seeds: one for each picture, of its initial slots; a picture's slots depend on nothing else."""
        features = self.features(image).contiguous()
        init = None if seeds is None else draw_states(self.slots, features, seeds)
        slots, attention = self.slots(features, init, num_iters=num_iters, return_attention=True)
        prediction = squash(self.head(slots))
        return (prediction, attention) if return_attention else prediction


def draw_states(module, features, seeds):
    """Initial states, each picture's from a generator of its own: the same in any batch and process."""
    states = [module.initial_state(features[i:i + 1], generator=torch.Generator(features.device).manual_seed(s))
              for i, s in enumerate(seeds)]
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def squash(raw) -> Tensor:
    """Head outputs (B, K, 19) to coordinates in [-1, 1], distributions, presence in [0, 1]."""
    parts = [torch.sigmoid(raw[..., COORDINATES]) * 2 - 1]
    parts += [raw[..., group].softmax(-1) for group in GROUPS.values()]
    return torch.cat([*parts, torch.sigmoid(raw[..., REAL:])], -1)


def pairwise_huber(prediction, target, empty_rows="all") -> Tensor:
    """Huber loss (threshold 1, mean over the 19 numbers) of every prediction with every target row.

    (B, K, 19) and (B, M, 19) -> (B, K, M). Rows without object are compared in their presence alone
    if empty_rows is "presence".
    """
    loss = F.smooth_l1_loss(prediction[:, :, None].expand(-1, -1, target.shape[1], -1),
                            target[:, None].expand(-1, prediction.shape[1], -1, -1), reduction="none")
    if empty_rows == "presence":
        weight = target[:, None, :, REAL:].expand(loss.shape).clone()
        weight[..., REAL] = 1
        loss = loss * weight
    return loss.mean(-1)
