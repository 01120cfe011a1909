"""Other implementations: their weights in modules of ours, and modules with a package's interface.

`from_peer` and `to_peer` translate the state dicts of sixteen implementations. The classes are those
of the package slot-attention: with its arguments, its call and its state_dict.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .._options import count
from . import _modules
from ._peers import from_peer, to_peer

__all__ = ["MultiHeadSlotAttention", "SlotAttention", "from_peer", "to_peer"]


class SlotAttention(_modules.SlotAttention):
    """`slot_attention.SlotAttention` of the package slot-attention, with its call and state_dict.

    Queries, keys and values have biases; gradients pass through every step.

    Parameters
    ----------
    num_slots : int
        K, number of slots.
    dim : int
        D, width of a slot and of an input.
    iters : int
        T, number of steps.
    eps : float
        Added to the attention before it is normalised over inputs.
    hidden_dim : int
        Hidden width of the MLP; at least `dim` is taken.
    """

    _RENAMED: ClassVar = {
        "norm_pre_ff.weight": "norm_mlp.weight",
        "norm_pre_ff.bias": "norm_mlp.bias",
    }

    def __init__(
        self, num_slots: int, dim: int, iters: int = 3, eps: float = 1e-8, hidden_dim: int = 128
    ) -> None:
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
        self.register_state_dict_post_hook(_translate_back)

    @property
    def iters(self) -> int:
        """T, number of steps."""
        return self.num_iters

    @property
    def norm_pre_ff(self) -> nn.Module:
        """The LayerNorm's parameters before the MLP."""
        return self.get_submodule("norm_mlp")

    @classmethod
    def _made(cls, options: dict[str, Any]) -> Self:
        own = {"num_slots", "dim", "eps", "hidden_dim"}
        made = cls(iters=options["num_iters"], **{n: options[n] for n in own})
        made.to(getattr(torch, options["dtype"]))
        differing = [
            n
            for n, v in made.options.items()
            if n not in ("weight_init", "dtype") and v != options[n]
        ]
        if differing:
            name = differing[0]
            raise ValueError(
                f"{name} must be {made.options[name]!r} in that package's module, "
                f"got {options[name]!r}"
            )
        return made

    def forward(  # type: ignore[override]
        self, inputs: Tensor, num_slots: int | None = None
    ) -> Tensor:
        slots: Tensor = super().forward(inputs, num_slots=num_slots)
        return slots


def _translate(
    module: SlotAttention, state_dict: dict[str, Any], prefix: str, *unused: Any
) -> None:
    """Rename that package's entries, and drop the leading axes of its initial slots."""
    for old, new in module._RENAMED.items():
        if prefix + old in state_dict:
            state_dict[prefix + new] = state_dict.pop(prefix + old)
    for name in ("slots_mu", "slots_logsigma"):
        value = state_dict.get(prefix + name)
        if isinstance(value, Tensor) and value.shape[:-1] == (1, 1):
            state_dict[prefix + name] = value[0, 0]


def _translate_back(
    module: SlotAttention, state_dict: dict[str, Any], prefix: str, *unused: Any
) -> None:
    """The entries as that package names and shapes them."""
    entries = [(name, state_dict.pop(name)) for name in list(state_dict) if name.startswith(prefix)]
    names = {new: old for old, new in module._RENAMED.items()}
    for key, value in entries:
        name = key.removeprefix(prefix)
        if name in ("slots_mu", "slots_logsigma") and value.dim() == 1:
            value = value[None, None]
        state_dict[prefix + names.get(name, name)] = value
