"""SLATE: a dVAE, the slots of its tokens, a transformer that writes the tokens from the slots."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shared.modules import autocast, find_slots, last_norm, make_slots
from .dvae import DVAE, PATCH
from .transformer import ImageGPT, linear


class Slate(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] to slots (B, K, D) and back, through N = (S/4)^2 tokens.

    The dVAE is made first, so that a seed gives it the same weights beside any slot module. It
    learns from its squared error alone, or not at all if it is `fixed`, all the rest from the
    cross-entropy alone: tokens carry no gradient.
    """

    def __init__(self, config):
        super().__init__()
        self.dvae = DVAE(config.vocabulary, config.channels, config.dvae_encoder)
        self.slots = make_slots(config)
        self.writer = ImageGPT(
            config.vocabulary,
            (config.image_size // PATCH) ** 2,
            config.dim,
            config.heads,
            config.blocks,
            self.slots.slot_dim,
            config.dropout,
            config.positions,
            config.token_std,
        )
        self.before_slots = nn.Identity()  # the slot mixture has its own norm and MLP
        if config.model != "smm":
            hidden = linear(config.dim, config.dim)
            nn.init.kaiming_uniform_(hidden.weight, nonlinearity="relu")
            layers = nn.LayerNorm(config.dim), hidden, nn.ReLU(), linear(config.dim, config.dim)
            self.before_slots = nn.Sequential(*layers, last_norm(config))
        self.tokens, self.precision = config.tokens, config.precision
        self.fixed = config.dvae is not None
        if self.fixed:
            self.dvae.requires_grad_(False)

    def learners(self):
        """Parameters of slots and transformer: all that learn and are not the dVAE's."""
        rest = (p for name, p in self.named_parameters() if not name.startswith("dvae."))
        return [p for p in rest if p.requires_grad]

    def features(self, image) -> Tensor:
        """What the slot module reads of pictures, (B, N, D)."""
        return self.embed(self.dvae.tokens(image))

    def embed(self, tokens):
        return self.before_slots(self.writer.embed(tokens)).float()

    def read(self, tokens, seeds=None, num_iters=None, num_slots=None):
        """Slots (B, K, D) and attention (B, N, K) of tokens (B, N); seeds as in `forward`."""
        return find_slots(self.slots, self.embed(tokens), seeds, num_iters, num_slots)

    def cross_entropy(self, tokens, slots) -> Tensor:
        """Of tokens (B, N) given slots, summed over each picture's tokens, (B,)."""
        scores = self.writer(tokens, slots).float()
        return F.cross_entropy(scores.transpose(1, 2), tokens, reduction="none").sum(1)

    def forward(self, image, noise_seeds, slot_seeds, temperature, alone=False, num_slots=None):
        """The dVAE's squared error and the cross-entropy, means over pictures of sums over each.

        noise_seeds, slot_seeds : one for each picture, of the dVAE's noise and of the initial
            slots.
        alone : the cross-entropy is left out: 0, with gradients 0, as several processes ask for one
            of every parameter.

        The error of a dVAE that is `fixed` is left out: 0.
        """
        with autocast(self.precision, image.device):
            if self.fixed:
                tokens = self.dvae.tokens(image)
                slots, _ = self.read(tokens, slot_seeds, num_slots=num_slots)
                return image.new_zeros(()), self.cross_entropy(tokens, slots).mean()
            error, sampled, likeliest = self.dvae(image, noise_seeds, temperature)
            if alone:
                return error.mean(), 0 * sum(p.sum() for p in self.learners())
            tokens = sampled if self.tokens == "sampled" else likeliest
            slots, _ = self.read(tokens, slot_seeds, num_slots=num_slots)
            return error.mean(), self.cross_entropy(tokens, slots).mean()

    @torch.no_grad()
    def encode(self, image, seeds=None, num_iters=None):
        """The likeliest tokens (B, N) of pictures; their slots and attention as of `read`."""
        with autocast(self.precision, image.device):
            tokens = self.dvae.tokens(image)
            return tokens, *self.read(tokens, seeds, num_iters)

    @torch.no_grad()
    def generate(self, slots) -> Tensor:
        """Pictures (B, 3, S, S) of slots, each token the likeliest after those before it."""
        with autocast(self.precision, slots.device):
            return self.dvae.picture(self.writer.generate(slots))
