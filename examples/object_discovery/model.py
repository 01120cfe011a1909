"""The autoencoder of object discovery: encoder, slots, a decoder of a picture and mask for each."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..shared.modules import PositionEmbedding, SlotEncoder, autocast


class Scene(NamedTuple):
    """What the model makes of pictures (B, 3, S, S)."""

    reconstruction: Tensor  # (B, 3, S, S), the slots' pictures weighted by their masks
    pictures: Tensor  # (B, K, 3, S, S)
    masks: Tensor  # (B, K, 1, S, S), sum over slots 1
    attention: Tensor  # (B, N, K)


class BroadcastDecoder(nn.Module):
    """Slots (B, K, D) to pictures and mask logits (B, K, 4, S, S), as in the paper's Table 6.

    A slot is repeated over a grid of S / (all strides) squared, the grid's position is added, and
    transposed convolutions bring it to the picture's size.
    """

    def __init__(self, width, config):
        super().__init__()
        channels = [width, *[config.decoder_channels] * len(config.decoder_strides)]
        self.grid = config.image_size // prod(config.decoder_strides)
        self.position = PositionEmbedding(width)
        layers = []
        for i, stride in enumerate(config.decoder_strides):
            own = channels[i], channels[i + 1]
            layers += [nn.ConvTranspose2d(*own, 5, stride, 2, stride - 1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(channels[-1], 4, 3, padding=1))

    def forward(self, slots) -> Tensor:
        grid = slots.flatten(0, 1)[:, :, None, None] + self.position.map(self.grid, self.grid)
        drawn = self.layers(grid.contiguous(memory_format=torch.channels_last))
        return drawn.unflatten(0, slots.shape[:2])


class ObjectDiscovery(SlotEncoder):
    """Pictures (B, 3, S, S) in [-1, 1] to a `Scene`."""

    def __init__(self, config):
        super().__init__(config)
        decoder = BroadcastDecoder(self.slots.slot_dim, config)
        self.decoder = decoder.to(memory_format=torch.channels_last)

    def forward(self, image, seeds=None, num_iters=None, num_slots=None) -> Scene:
        """seeds: see `SlotEncoder.find`."""
        slots, attention = self.find(image, seeds, num_iters, num_slots)
        with autocast(self.precision, image.device):
            drawn = self.decoder(slots)
        pictures, logits = drawn.float().split([3, 1], 2)
        masks = logits.softmax(1)
        return Scene((pictures * masks).sum(1), pictures, masks, attention)
