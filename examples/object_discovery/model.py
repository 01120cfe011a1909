"""The autoencoder of object discovery: encoder, slots, a decoder of a picture and mask for each."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from smm_py.torch import merge_slots

from ..shared.modules import PositionEmbedding, SlotEncoder, autocast

SPREAD = 0.25  # standard deviation of a pixel about what its slot draws, of values in [-1, 1]
MOST = 4.0  # what a wrong pixel costs at most, in nats: where no slot has drawn it, masks decide
DOUBT = 1.0  # so much likelier, in nats, a pixel must be of a background of its own


class Scene(NamedTuple):
    """What the model makes of pictures (B, 3, S, S)."""

    reconstruction: Tensor  # (B, 3, S, S), the slots' pictures weighted by their masks
    pictures: Tensor  # (B, K, 3, S, S); with a background of its own K + 1, it is the last
    masks: Tensor  # (B, K or K + 1, 1, S, S), sum over slots 1
    attention: Tensor  # (B, N, K)
    group: Tensor  # (B, K), the slot that stands for each: itself, unless `merged`


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
    """Pictures (B, 3, S, S) in [-1, 1] to a `Scene`.

    In evaluation it is `merged` if `merge` is set, as it is where the background has its own slot.
    """

    def __init__(self, config):
        super().__init__(config)
        self.merge = config.background == "own"
        self.background = None
        if self.merge:
            self.background = nn.Parameter(torch.zeros(self.slots.slot_dim))
        decoder = BroadcastDecoder(self.slots.slot_dim, config)
        self.decoder = decoder.to(memory_format=torch.channels_last)

    def forward(self, image, seeds=None, num_iters=None, num_slots=None) -> Scene:
        """seeds: see `SlotEncoder.find`."""
        return self.draw(*self.find(image, seeds, num_iters, num_slots))

    def draw(self, slots, attention) -> Scene:
        """The scene of slots (B, K, D), with the attention that found them."""
        with autocast(self.precision, slots.device):
            drawn = self.decoder(slots)
            if self.background is not None:
                behind = self.decoder(self.background[None, None]).expand(len(drawn), *[-1] * 4)
                drawn = torch.cat([drawn, behind], 1)
        pictures, logits = drawn.float().split([3, 1], 2)
        masks = logits.softmax(1)
        group = torch.arange(slots.shape[1], device=slots.device).expand(slots.shape[:2])
        scene = Scene((pictures * masks).sum(1), pictures, masks, attention, group)
        return merged(scene) if self.merge and not self.training else scene


def merged(scene) -> Scene:
    """The scene with slots that have parts of one object as one, in the place of the largest.

    They are those whose masks overlap; a background of its own is none of them. The reconstruction
    is the same, as each pixel of a merged picture is the mean of its parts by their masks.
    """
    slots = scene.group.shape[1]
    masks = scene.masks[:, :slots].flatten(2)
    parts = masks[..., None].new_zeros(*masks.shape[:2], 1)
    found = merge_slots(parts, parts, masks.mean(2), masks.mT, by="overlap")
    member = torch.eye(scene.masks.shape[1]).to(masks).repeat(len(masks), 1, 1)
    member[:, :slots, :slots] = (found.group[:, None] == scene.group[..., None]).to(masks.dtype)
    whole = torch.einsum("bgk,bkchw->bgchw", member, scene.masks)
    drawn = torch.einsum("bgk,bkchw->bgchw", member, scene.masks * scene.pictures)
    pictures = torch.where(whole > 0, drawn / whole.clamp_min(1e-30), scene.pictures)
    return scene._replace(pictures=pictures, masks=whole, group=found.group)


def slot_of_each_pixel(scene, image) -> Tensor:
    """(B, S, S): the slot of each pixel of pictures (B, 3, S, S), that of the largest mask.

    Beside a background of its own, the slot that is most likely to have drawn the pixel, by Bayes'
    rule: its mask is the prior, its picture the mean of a Gaussian with outliers.
    """
    if scene.group.shape[1] == scene.masks.shape[1]:
        return scene.masks[:, :, 0].argmax(1)
    error = (scene.pictures - image[:, None]).square().sum(2) / (2 * SPREAD**2)
    score = scene.masks[:, :, 0].log() - error.clamp(max=MOST)
    score[:, scene.group.shape[1] :] -= DOUBT
    return score.argmax(1)


def count_objects(scene, found) -> Tensor:
    """(B,): the slots that have a pixel of `found`, (B, S, S), but for the background's."""
    slots, every = scene.group.shape[1], scene.masks.shape[1]
    used = nn.functional.one_hot(found.flatten(1), every).any(1)
    return used[:, :slots].sum(1) - int(slots == every)
