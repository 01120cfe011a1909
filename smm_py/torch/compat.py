"""Modules with the arguments and the state_dict of other packages."""

from __future__ import annotations

from torch import Tensor

from .._spec import count
from . import _modules


class SlotAttention(_modules.SlotAttention):
    """`slot_attention.SlotAttention` of the package slot-attention: its arguments, call and state_dict.

    Parameters
    ----------
    num_slots, dim, iters, eps, hidden_dim
        As there; the hidden width is at least `dim`, queries, keys and values have biases, gradients
        pass through every step. `forward(inputs, num_slots=None)`.
    """

    _RENAMED = {"norm_pre_ff.weight": "norm_mlp.weight", "norm_pre_ff.bias": "norm_mlp.bias"}

    def __init__(self, num_slots, dim, iters=3, eps=1e-8, hidden_dim=128):
        count("dim", dim)
        count("hidden_dim", hidden_dim)
        super().__init__(
            dim=dim,
            num_slots=num_slots,
            num_iters=iters,
            eps=eps,
            hidden_dim=max(dim, hidden_dim),
            qkv_bias=True,
            gradient="full",
        )
        self.register_load_state_dict_pre_hook(_translate)

    def forward(self, inputs, num_slots=None):
        return super().forward(inputs, num_slots=num_slots)


def _translate(module, state_dict, prefix, *unused):
    """Rename that package's entries, and drop the leading axes of its initial slots."""
    for old, new in module._RENAMED.items():
        if prefix + old in state_dict:
            state_dict[prefix + new] = state_dict.pop(prefix + old)
    for name in ("slots_mu", "slots_logsigma"):
        value = state_dict.get(prefix + name)
        if isinstance(value, Tensor) and value.shape[:-1] == (1, 1):
            state_dict[prefix + name] = value[0, 0]
