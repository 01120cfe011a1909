"""Image GPT decoder: the next token from those before it and from the slots.

As in SLATE (Singh, Deng and Ahn 2022): pre-norm blocks of causal self-attention, attention to the
slots and an MLP, without biases in the attentions; weights that write to the residual stream start
small, by (3 blocks)^-1/2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(inputs, outputs, bias=True, gain=1.0):
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.xavier_uniform_(layer.weight, gain)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Attention(nn.Module):
    """Multi-head attention; keys and values are computed apart, so that they can be cached."""

    def __init__(self, dim, heads, gain, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.to_q, self.to_k, self.to_v = (linear(dim, dim, bias=False) for _ in range(3))
        self.to_out = linear(dim, dim, bias=False, gain=gain)

    def split(self, x):  # (B, T, D) -> (B, heads, T, D / heads)
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, x):
        return self.split(self.to_k(x)), self.split(self.to_v(x))

    def forward(self, x, keys, values, causal=False):
        dropout = self.dropout if self.training else 0.0
        parts = self.split(self.to_q(x)), keys, values
        if x.device.type == "cpu":  # whose gradients take two to eight times as long in bfloat16
            parts = [part.to(self.to_q.weight.dtype) for part in parts]
        with torch.autocast("cpu", enabled=False):
            mixed = F.scaled_dot_product_attention(*parts, is_causal=causal, dropout_p=dropout)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim, heads, gain, dropout, first):
        super().__init__()
        # the first block's input is normalised by the decoder
        self.norm_self = nn.Identity() if first else nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, gain, dropout)
        self.norm_slots = nn.LayerNorm(dim)
        self.slot_attention = Attention(dim, heads, gain, dropout)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(linear(dim, 4 * dim), nn.ReLU(), linear(4 * dim, dim, gain=gain))
        nn.init.kaiming_uniform_(self.mlp[0].weight, nonlinearity="relu")
        self.drop = nn.Dropout(dropout)

    def forward(self, x, slots, past=None):
        """x (B, T, D); slots: their keys and values; past: a `Past` where x is the next token."""
        normed = self.norm_self(x)
        keys, values = self.attention.keys_values(normed)
        if past is not None:
            keys, values = past.append(keys, values)
        x = x + self.drop(self.attention(normed, keys, values, causal=past is None))
        x = x + self.drop(self.slot_attention(self.norm_slots(x), *slots))
        return x + self.drop(self.mlp(self.norm_mlp(x)))


class Past:
    """Keys and values of one block's tokens so far, in memory for all of them."""

    def __init__(self, tokens):
        self.tokens, self.length, self.cached = tokens, 0, None

    def append(self, *new):
        if self.cached is None:
            self.cached = [
                part.new_empty(*part.shape[:2], self.tokens, part.shape[3]) for part in new
            ]
        for cached, part in zip(self.cached, new):
            cached[:, :, self.length : self.length + 1] = part
        self.length += 1
        return [cached[:, :, : self.length] for cached in self.cached]


def sinusoids(side, dim) -> Tensor:
    """Sines and cosines of the rows and columns of a square: near places have like vectors.

    (side^2, dim), row by row.

    Four channels for each wavelength, which go from twice the side to two places in geometric steps
    (after Vaswani et al. 2017).
    """
    frequency = math.pi / side * side ** torch.linspace(0, 1, math.ceil(dim / 4))
    waves = torch.arange(side)[:, None] * frequency
    waves = torch.stack([waves.sin(), waves.cos()], 2)  # (side, dim / 4, 2)
    rows, columns = waves[:, None].expand(side, side, -1, 2), waves[None].expand(side, side, -1, 2)
    return torch.cat([rows, columns], 3).flatten(2).flatten(0, 1)[:, :dim]


class ImageGPT(nn.Module):
    """Tokens (B, N) given slots (B, K, slot_dim).

    Token embeddings with learned positions are also what the slot module reads (`embed`). Number
    `vocabulary` is the token before the first. positions : "normal", as in SLATE, or "sinusoids",
    which those start from.
    token_std : of the numbers that the embeddings start from, which are normal.
    """

    def __init__(
        self,
        vocabulary,
        tokens,
        dim,
        heads,
        blocks,
        slot_dim,
        dropout=0.0,
        positions="normal",
        token_std=1.0,
    ):
        super().__init__()
        self.start, self.tokens, self.token_std = vocabulary, tokens, token_std
        self.embedding = nn.Embedding(vocabulary + 1, dim)
        self.embedding.weight.data *= token_std
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens + 1, dim)))
        if positions == "sinusoids":
            self.positions.data[1:] = sinusoids(math.isqrt(tokens), dim)
        self.drop = nn.Dropout(dropout)
        self.from_slots = linear(slot_dim, dim, bias=False)
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        gain = (3 * blocks) ** -0.5
        self.blocks = nn.ModuleList(
            Block(dim, heads, gain, dropout, first=i == 0) for i in range(blocks)
        )
        self.to_scores = linear(dim, vocabulary, bias=False)

    @torch.no_grad()
    def start_at(self, vectors):
        """Let like tokens start alike, by vectors (V, P) of what they stand for.

        Embeddings become these, turned into `dim` channels and scaled to `token_std`. The weights
        of the scores keep their size; half of their variance becomes the vectors'.
        """
        turn = torch.empty(self.embedding.embedding_dim, vectors.shape[1])
        nn.init.orthogonal_(turn, generator=torch.Generator().manual_seed(0))
        alike = vectors @ turn.to(vectors).mT
        alike /= alike.square().mean().sqrt()
        self.embedding.weight[: self.start] = self.token_std * alike
        scores = self.to_scores.weight
        scores.copy_((scores + scores.square().mean().sqrt() * alike) / 2**0.5)

    def embed(self, tokens, first=1) -> Tensor:
        """Embeddings (B, T, dim) of tokens (B, T) from place `first` on; place 0 is the start's."""
        return self.drop(self.embedding(tokens) + self.positions[first : first + tokens.shape[1]])

    def slot_memory(self, slots):
        """Keys and values of the slots for every block."""
        slots = self.from_slots(slots)
        return [block.slot_attention.keys_values(slots) for block in self.blocks]

    def run(self, embedded, memory, past=None):
        x = self.norm_in(embedded)
        for i, block in enumerate(self.blocks):
            x = block(x, memory[i], past and past[i])
        return self.to_scores(self.norm_out(x))

    def forward(self, tokens, slots) -> Tensor:
        """Scores (B, N, V) of each of the tokens (B, N), from those before it and the slots."""
        before = torch.cat([self.first(len(tokens)), tokens[:, :-1]], 1)
        return self.run(self.embed(before, 0), self.slot_memory(slots))

    def first(self, batch):
        """The token before the first, (B, 1)."""
        return torch.full((batch, 1), self.start, device=self.positions.device)

    @torch.no_grad()
    def generate(self, slots) -> Tensor:
        """The likeliest token after the likeliest tokens before it, (B, N)."""
        memory, past = self.slot_memory(slots), [Past(self.tokens) for _ in self.blocks]
        tokens = [self.first(len(slots))]
        for place in range(self.tokens):
            tokens.append(self.run(self.embed(tokens[-1], place), memory, past).argmax(-1))
        return torch.cat(tokens[1:], 1)
