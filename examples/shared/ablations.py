"""The Slot Mixture Module without one of its three differences from Slot Attention.

The paper (Kirilenko et al. 2024, section 3) names them: variances and priors are updated beside the
means, the Gaussian density stands in place of the dot product, and a slot is mean and variance.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from smm_py.torch import Formulas, SlotMixture


class SameSpread(SlotMixture):
    """All Gaussians have variance 1 and equal priors; variances are found for the slots alone."""

    class formulas(Formulas):
        def e_step(self, mean, log_std, prior):
            return super().e_step(mean, torch.zeros_like(log_std), self.uniform)


class DotProduct(SlotMixture):
    """Responsibilities are those of Slot Attention, from dot products at the temperature."""

    class formulas(Formulas):
        def e_step(self, mean, log_std, prior):
            _, hidden, _ = super().e_step(mean, log_std, prior)
            queries = F.linear(mean, self.p["to_q.weight"], self.p.get("to_q.bias"))
            logits = self.spec.temperature * self.keys @ queries.mT
            gamma = logits.masked_fill(~self.active[:, None], -math.inf).softmax(-1)
            return gamma, hidden, None


class MeansAlone(SlotMixture):
    """The map from mean and variance to the slot does not read the variance."""

    def __init__(self, **options):
        super().__init__(**options)
        unread = torch.arange(self.to_out.weight.shape[1]) >= options["dim"]
        with torch.no_grad():
            self.to_out.weight[:, unread] = 0
        self.to_out.weight.register_hook(lambda grad: grad.masked_fill(unread.to(grad.device), 0))


MIXTURES = {None: SlotMixture, "spread": SameSpread, "density": DotProduct, "variance": MeansAlone}
