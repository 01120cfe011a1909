"""Discrete VAE: a picture as a grid of tokens out of a vocabulary, one for every 4 x 4 pixels.

Layers as in SLATE (Singh, Deng and Ahn 2022, "Illiterate DALL-E learns to compose"), Gumbel-softmax
by Jang et al. 2017. Its encoder may be nearest centres in place of layers: see `Centres`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import smm_py

PATCH = 4  # pixels along each side that a token stands for
SAMPLE = 40_000  # patches that centres are found of
NAME = "dvae."  # what its weights' names begin with, in a run's


class Block(nn.Module):
    """Convolution, normalisation over the whole picture, ReLU."""

    def __init__(self, inputs, outputs, kernel=1, stride=1, padding=0):
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        nn.init.kaiming_uniform_(self.convolution.weight, nonlinearity="relu")
        self.norm = nn.GroupNorm(1, outputs)

    def forward(self, x):
        return F.relu(self.norm(self.convolution(x)))


def last_layer(inputs, outputs):
    layer = nn.Conv2d(inputs, outputs, 1)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def patches_of(images) -> Tensor:
    """Those of pictures (n, 3, S, S), one after the other: (n S^2 / 16, 48)."""
    return F.unfold(images, PATCH, stride=PATCH).mT.flatten(0, 1)


class Centres(nn.Conv2d):
    """Scores of tokens by how near their centres are to a patch, all fixed once they are found.

    A score is x.c - |c|^2 / 2 of patch x and centre c: half the squared distance, negative, but for
    |x|^2, which all tokens share.
    """

    def __init__(self, vocabulary):
        super().__init__(3, vocabulary, PATCH, PATCH)
        self.requires_grad_(False)

    def find(self, images, seed):
        """K-means of patches of pictures (n, 3, S, S) in [-1, 1].

        They are drawn by their squared distance from the mean patch, so that few of them are of
        plain ground; k-means++ starts (Arthur, Vassilvitskii 2007), then soft k-means so sharp that
        it is hard.
        """
        rng = np.random.default_rng(seed)
        patches = patches_of(images).numpy()
        away = np.square(patches - patches.mean(0)).sum(1, dtype=np.float64)
        away += away.mean() / 1000 + 1e-12  # where all are alike
        some = patches[rng.choice(len(patches), SAMPLE, p=away / away.sum())]
        found = some[rng.integers(SAMPLE)][None]
        nearest = np.full(SAMPLE, np.inf)
        while len(found) < self.out_channels:
            nearest = np.minimum(nearest, np.square(some - found[-1]).sum(1, dtype=np.float64))
            likely = nearest + 1e-12
            found = np.vstack([found, some[rng.choice(SAMPLE, p=likely / likely.sum())]])
        options = {"dim": found.shape[1], "num_slots": len(found), "num_iters": 30, "scale": 100.0}
        found = smm_py.KMeans(**options, dtype="float32")(some[None], init={"slots": found[None]})
        centres = torch.from_numpy(found.slots[0])
        self.weight.copy_(centres.unflatten(1, self.weight.shape[1:]))
        self.bias.copy_(-centres.square().sum(1) / 2)

    def unlike_ground(self, images) -> Tensor:
        """How each centre differs from plain ground, the median patch of pictures: (V, 48).

        Lengths are below 1, and small where the difference is no larger than that of most patches.
        So a patch at an object's edge is like those within it, only nearer to the ground.
        """
        patches = patches_of(images).to(self.weight)
        ground = patches.median(0).values
        usual = (patches - ground).norm(dim=1).median().clamp_min(1e-6)
        differences = self.weight.flatten(1) - ground
        return differences / (differences.norm(dim=1, keepdim=True) + usual)


class DVAE(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] to scores of tokens (B, V, S/4, S/4) and back."""

    def __init__(self, vocabulary, channels=64, encoder="layers"):
        super().__init__()
        c = channels
        self.vocabulary = vocabulary
        if encoder == "centres":
            self.encoder = Centres(vocabulary)
        else:
            own = *(Block(c, c) for _ in range(6)), last_layer(c, vocabulary)
            self.encoder = nn.Sequential(Block(3, c, PATCH, PATCH), *own)
        self.decoder = nn.Sequential(
            Block(vocabulary, c), *twice_as_large(c), *twice_as_large(c), last_layer(c, 3)
        )
        self.to(memory_format=torch.channels_last)  # faster convolutions on CPUs

    @staticmethod
    def rename(weights):
        """Those of the dVAE among a run's."""
        own = {name: w for name, w in weights.items() if name.startswith(NAME)}
        return {name.removeprefix(NAME): w for name, w in own.items()}

    def tokens(self, image) -> Tensor:
        """The likeliest tokens (B, N) of pictures, row by row."""
        return self.encoder(image).argmax(1).flatten(1)

    def picture(self, tokens) -> Tensor:
        """Pictures (B, 3, S, S) of tokens (B, N)."""
        return self.decoder(self.chosen(tokens)).float().clamp(-1, 1)

    def chosen(self, tokens):
        """Tokens (B, N) as what the decoder reads, (B, V, S/4, S/4)."""
        side = math.isqrt(tokens.shape[1])
        choice = F.one_hot(tokens.unflatten(1, (side, side)), self.vocabulary)
        return choice.permute(0, 3, 1, 2).float()

    def summary(self, image) -> Tensor:
        """The last features before the scores, or the decoder's first, mean over places."""
        if isinstance(self.encoder, Centres):
            features = self.decoder[0](self.chosen(self.tokens(image)))
        else:
            features = self.encoder[:-1](image)
        return features.float().mean((2, 3))

    def forward(self, image, seeds, temperature):
        """Squared error (B,) through relaxed tokens; the sampled and likeliest tokens (B, N).

        seeds : one for each picture, of its Gumbel noise, which depends on nothing else. The
            sampled tokens are drawn from the encoder's distribution with the same noise: the
            relaxed ones at temperature 0. Nearest centres have neither noise nor relaxed tokens.
        """
        if isinstance(self.encoder, Centres):
            tokens = self.tokens(image)
            drawn = self.decoder(self.chosen(tokens)).float()
            return squared_error(drawn, image), tokens, tokens
        scores = self.encoder(image).float()
        noisy = scores + gumbel_noise(scores, seeds)
        drawn = self.decoder((noisy / temperature).softmax(1)).float()
        return squared_error(drawn, image), noisy.argmax(1).flatten(1), scores.argmax(1).flatten(1)


def twice_as_large(channels):
    """Layers that double height and width."""
    c = channels
    return Block(c, c, 3, padding=1), Block(c, c), Block(c, c), Block(c, 4 * c), nn.PixelShuffle(2)


def gumbel_noise(like, seeds) -> Tensor:
    """Standard Gumbel noise like `like` (B, ...), each picture's from a generator of its own."""
    noise = torch.empty_like(like, memory_format=torch.contiguous_format)
    for picture, seed in zip(noise, seeds, strict=True):
        picture.exponential_(generator=torch.Generator(like.device).manual_seed(seed))
    return -noise.clamp_min_(torch.finfo(noise.dtype).tiny).log_()


def squared_error(a, b) -> Tensor:
    """Squared error (B,), summed, of pictures in [-1, 1] as if they were in [0, 1]."""
    return ((a - b) / 2).square().sum((1, 2, 3))


def temperature_at(step, first, last, steps) -> float:
    """From `first` to `last` along half a cosine in `steps` steps, then `last`."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
