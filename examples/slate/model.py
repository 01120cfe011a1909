"""SLATE: a dVAE, the slots of its tokens, and a transformer that writes the tokens from the slots."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..set_prediction.model import draw_states, make_slots
from .dvae import DVAE, PATCH
from .transformer import ImageGPT, linear


class Slate(nn.Module):
    """Pictures (B, 3, S, S) in [0, 1] to slots (B, K, D) and back, through N = (S/4)^2 tokens.

    The dVAE is made first, so that a seed gives it the same weights beside any slot module. It learns from its
    squared error alone, all the rest from the cross-entropy alone: tokens carry no gradient.
    """

    def __init__(self, config):
        super().__init__()
        self.dvae = DVAE(config.vocabulary, config.channels)
        self.writer = ImageGPT(config.vocabulary, (config.image_size // PATCH) ** 2, config.dim, config.heads, config.blocks,
                               config.dim, config.dropout)
        self.slots = make_slots(config)
        self.before_slots = nn.Identity()  # the slot mixture has its own norm and MLP
        if config.model != "smm":
            hidden = linear(config.dim, config.dim)
            nn.init.kaiming_uniform_(hidden.weight, nonlinearity="relu")
            self.before_slots = nn.Sequential(nn.LayerNorm(config.dim), hidden, nn.ReLU(), linear(config.dim, config.dim))

    def read(self, embedded, seeds=None, num_iters=None):
        """Slots (B, K, D) and attention (B, N, K) of embedded tokens; seeds as in `forward`."""
        features = self.before_slots(embedded)
        init = None if seeds is None else draw_states(self.slots, features, seeds)
        return self.slots(features, init, num_iters=num_iters, return_attention=True)

    def cross_entropy(self, tokens, seeds=None, num_iters=None) -> Tensor:
        """Of tokens (B, N) given their own slots, summed over each picture's tokens, (B,)."""
        embedded = self.writer.embed(tokens)
        slots, _ = self.read(embedded, seeds, num_iters)
        scores = self.writer(embedded, slots)
        return F.cross_entropy(scores.transpose(1, 2), tokens, reduction="none").sum(1)

    def forward(self, image, noise_seeds, slot_seeds, temperature):
        """Squared error of the dVAE and cross-entropy, each a mean over pictures.

        noise_seeds, slot_seeds : one for each picture, of the dVAE's noise and of the initial slots.
        """
        error, tokens = self.dvae(image, noise_seeds, temperature)
        return error, self.cross_entropy(tokens, slot_seeds).mean()

    @torch.no_grad()
    def encode(self, image, seeds=None, num_iters=None):
        """Tokens (B, N), slots (B, K, D) and attention (B, N, K) of pictures."""
        tokens = self.dvae.tokens(image)
        return tokens, *self.read(self.writer.embed(tokens), seeds, num_iters)

    @torch.no_grad()
    def generate(self, slots) -> Tensor:
        """Pictures of slots, token by token."""
        return self.dvae.picture(self.writer.generate(slots))
