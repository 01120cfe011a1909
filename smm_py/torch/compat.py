"""Other implementations: their weights in our modules, and modules with a package's interface.

`from_peer` and `to_peer` translate state dicts of sixteen implementations. The classes are those
of the package slot-attention: with its arguments, its call and its state_dict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from .._options import count
from . import _modules
from ._peers import from_peer, to_peer

__all__ = ["MultiHeadSlotAttention", "SlotAttention", "from_peer", "to_peer"]


class _Lucidrains(_modules.SlotAttention):
    """What the package's modules share. Their state_dict has its names, and loads from them."""

    _RENAMED: ClassVar = {
        "norm_pre_ff.weight": "norm_mlp.weight",
        "norm_pre_ff.bias": "norm_mlp.bias",
    }

    def __init__(self, *, dim: int, iters: int, hidden_dim: int, **options: Any) -> None:
        count("dim", dim)
        count("hidden_dim", hidden_dim)
        super().__init__(
            dim=dim,
            num_iters=count("iters", iters),
            hidden_dim=max(dim, hidden_dim),
            qkv_bias=True,
            gradient="full",
            dtype=torch.get_default_dtype(),
            **options,
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
    def _arguments(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """What the constructor takes for such options."""
        own = {name: options[name] for name in ("num_slots", "dim", "eps", "hidden_dim")}
        return {**own, "iters": options["num_iters"]}

    @classmethod
    def _made(cls, options: dict[str, Any]) -> Self:
        options = {name: row.default for name, row in cls._rows.items()} | options
        made = cls(**cls._arguments(options))
        made.to(getattr(torch, options["dtype"]))
        for name, value in made.options.items():
            told = made._spec.left_out(name, options[name])
            if name not in ("weight_init", "dtype", "seed") and value != told:
                raise ValueError(f"{name} must be {value!r} in that package's module, got {told!r}")
        return made

    def forward(  # type: ignore[override]
        self, inputs: Tensor, num_slots: int | None = None
    ) -> Tensor:
        """Slots of a batch.

        Parameters
        ----------
        inputs : (B, N, D)
        num_slots : int, optional
            In place of the module's own.

        Returns
        -------
        slots : (B, K, D)
        """
        return super().forward(inputs, num_slots=num_slots)

    if TYPE_CHECKING:

        @_modules._typed_as(forward)
        def __call__(  # type: ignore[override]
            self, *args: Any, **kwargs: Any
        ) -> Any: ...


class SlotAttention(_Lucidrains):
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

    def __init__(
        self, num_slots: int, dim: int, iters: int = 3, eps: float = 1e-8, hidden_dim: int = 128
    ) -> None:
        super().__init__(num_slots=num_slots, dim=dim, iters=iters, eps=eps, hidden_dim=hidden_dim)


class MultiHeadSlotAttention(_Lucidrains):
    """`slot_attention.MultiHeadSlotAttention` of the package slot-attention.

    Each head has a softmax over slots of its own; a linear map combines the heads. The package's
    AdaptiveSlotWrapper takes it.

    Parameters
    ----------
    num_slots : int
        K, number of slots.
    dim : int
        D, width of a slot and of an input.
    heads : int
        Number of heads.
    dim_head : int
        Width of a head.
    iters : int
        T, number of steps.
    eps : float
        Added to the attention before it is normalised over inputs.
    hidden_dim : int
        Hidden width of the MLP; at least `dim` is taken.
    version : {'1.5', '1.4'}
        Of the package: logits are scaled by dim_head^-1/2, in 1.4 and before by dim^-1/2. Weights
        of one give other numbers in the other.
    """

    def __init__(
        self,
        num_slots: int,
        dim: int,
        heads: int = 4,
        dim_head: int = 64,
        iters: int = 3,
        eps: float = 1e-8,
        hidden_dim: int = 128,
        *,
        version: Literal["1.4", "1.5"] = "1.5",
    ) -> None:
        if version not in ("1.4", "1.5"):
            raise ValueError(f"version must be '1.4' or '1.5', got {version!r}")
        super().__init__(
            num_slots=num_slots,
            dim=dim,
            heads=count("heads", heads),
            qkv_dim=heads * count("dim_head", dim_head),
            combine_heads=True,
            scale=count("dim", dim) ** -0.5 if version == "1.4" else None,
            iters=iters,
            eps=eps,
            hidden_dim=hidden_dim,
        )

    @classmethod
    def _arguments(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        heads, width = options["heads"], options["qkv_dim"] or options["dim"]
        old = options["scale"] == options["dim"] ** -0.5 and width != heads * options["dim"]
        sizes = {"heads": heads, "dim_head": width // heads, "version": "1.4" if old else "1.5"}
        return super()._arguments(options) | sizes


def _translate(module: _Lucidrains, state_dict: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Rename that package's entries, and drop the leading axes of its initial slots."""
    for old, new in module._RENAMED.items():
        if prefix + old in state_dict:
            state_dict[prefix + new] = state_dict.pop(prefix + old)
    for name in ("slots_mu", "slots_logsigma"):
        value = state_dict.get(prefix + name)
        if isinstance(value, Tensor) and value.shape[:-1] == (1, 1):
            state_dict[prefix + name] = value[0, 0]


def _translate_back(
    module: _Lucidrains, state_dict: dict[str, Any], prefix: str, *unused: Any
) -> None:
    """The entries as that package names and shapes them."""
    entries = [(name, state_dict.pop(name)) for name in list(state_dict) if name.startswith(prefix)]
    names = {new: old for old, new in module._RENAMED.items()}
    for key, value in entries:
        name = key.removeprefix(prefix)
        if name in ("slots_mu", "slots_logsigma") and value.dim() == 1:
            value = value[None, None]
        state_dict[prefix + names.get(name, name)] = value
