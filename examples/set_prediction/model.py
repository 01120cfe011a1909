"""The set predictor: convolutions, a slot module, and a small MLP for each slot's properties."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smm_py.torch import merge_slots

from ..data.properties import COORDINATES, GROUPS, REAL, WIDTH
from ..shared.modules import SlotEncoder

TINY = 1e-7  # least probability whose logarithm has a gradient


class SetPredictor(SlotEncoder):
    """Pictures (B, 3, S, S) in [-1, 1] to predictions (B, K, 19): see `examples.data.properties`.

    Coordinates come out in [-1, 1], each property as a distribution, presence last. They are
    `merged` if `merge` is set.
    """

    merge = False

    def __init__(self, config):
        super().__init__(config)
        first, second = nn.Linear(self.slots.slot_dim, config.dim), nn.Linear(config.dim, WIDTH)
        self.head = nn.Sequential(first, nn.ReLU(), second)

    @staticmethod
    def rename(weights):
        """As they are; those that the paper's authors released are told by a name."""
        if "slot_attention.mu_init.0.weight" in weights:
            raise ValueError("those that the paper's authors released; give --model reference")
        return weights

    def forward(self, image, seeds=None, num_iters=None, return_attention=False, num_slots=None):
        """seeds: see `SlotEncoder.find`."""
        slots, attention = self.find(image, seeds, num_iters, num_slots)
        prediction = squash(self.head(slots))
        prediction = merged(prediction, attention) if self.merge else prediction
        return (prediction, attention) if return_attention else prediction


def merged(prediction, attention) -> Tensor:
    """Predictions where of the slots that are present and of one object one is left.

    They are those that attend (B, N, K) to the same places. The one with the most stays, and the
    others have a presence of 0.
    """
    present = prediction[..., REAL] > 0.5
    nothing = prediction.new_zeros(*present.shape, 1)
    mass = attention.sum(1) * present
    left = merge_slots(nothing, nothing, mass, attention, by="overlap").mass > 0
    kept = torch.where(present & ~left, 0, prediction[..., REAL])
    return torch.cat([prediction[..., :REAL], kept[..., None]], -1)


def squash(raw) -> Tensor:
    """Head outputs (B, K, 19) to coordinates in [-1, 1], distributions, presence in [0, 1]."""
    parts = [torch.sigmoid(raw[..., COORDINATES]) * 2 - 1]
    parts += [raw[..., group].softmax(-1) for group in GROUPS.values()]
    return torch.cat([*parts, torch.sigmoid(raw[..., REAL:])], -1)


def pairwise_likelihood(prediction, target, scale) -> Tensor:
    """Negative log-likelihood of every target row under every prediction, over the 19 numbers.

    (B, K, 19) and (B, M, 19) -> (B, K, M). Coordinates have Huber's density (1964), normal up to a
    `scale` from the predicted ones, Laplace's beyond; properties and presence are drawn as
    predicted. Rows without object are compared in their presence alone, and terms of the scale
    alone are left out.
    """
    there = target[:, None, :, REAL]
    pairs = prediction[:, :, None, COORDINATES], target[:, None, :, COORDINATES]
    pairs = torch.broadcast_tensors(*pairs)
    places = F.smooth_l1_loss(*pairs, reduction="none", beta=scale).sum(-1) / scale
    chosen = slice(COORDINATES.stop, REAL)
    properties = -(prediction[..., chosen] + TINY).log() @ target[..., chosen].transpose(1, 2)
    present = prediction[:, :, None, REAL]
    presence = -torch.where(there > 0, present, 1 - present).add(TINY).log()
    return (there * (places + properties) + presence) / WIDTH


def pairwise_huber(prediction, target, empty_rows="all") -> Tensor:
    """Huber loss (threshold 1, mean over the 19 numbers) of every prediction with every target row.

    (B, K, 19) and (B, M, 19) -> (B, K, M). Rows without object are compared in their presence alone
    if empty_rows is "presence".
    """
    loss = F.smooth_l1_loss(
        prediction[:, :, None].expand(-1, -1, target.shape[1], -1),
        target[:, None].expand(-1, prediction.shape[1], -1, -1),
        reduction="none",
    )
    if empty_rows == "presence":
        weight = target[:, None, :, REAL:].expand(loss.shape).clone()
        weight[..., REAL] = 1
        loss = loss * weight
    return loss.mean(-1)
