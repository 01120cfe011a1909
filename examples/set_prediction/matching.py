"""Which slot answers for which object: the assignment of least cost (Hungarian method, SciPy)."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from .model import pairwise_huber


def match(cost) -> torch.Tensor:
    """Columns (B, K) assigned to the K rows of cost (B, K, K), each used once.

    Any, where costs are not finite, as then the loss is not.
    """
    cost = np.nan_to_num(cost.detach().cpu().double().numpy())
    return torch.from_numpy(np.stack([linear_sum_assignment(c)[1] for c in cost]))


def set_loss(prediction, target, pairwise=pairwise_huber) -> torch.Tensor:
    """Loss under the best matching: mean over numbers, sum over slots, mean over pictures.

    prediction (B, K, 19); target (B, M, 19) with its objects first; pairwise (prediction, target)
    gives the loss of each pair (B, K, M). ValueError if a picture has more objects than there are
    slots.
    """
    slots = prediction.shape[1]
    if target.shape[1] > slots:
        if target[:, slots:, -1].any():
            raise ValueError(
                f"slots must be at least as many as the objects of a picture, got {slots}"
            )
        target = target[:, :slots]
    elif target.shape[1] < slots:
        target = torch.nn.functional.pad(target, (0, 0, 0, slots - target.shape[1]))
    cost = pairwise(prediction, target)
    columns = match(cost).to(cost.device)
    return cost.gather(2, columns[..., None]).sum((1, 2)).mean()
