from typing import Any

import numpy as np

Array = np.ndarray[Any, Any] | tuple[int, tuple[int, ...]]  # or (address, shape)

__version__: str

class Config:
    def __new__(
        cls,
        kind: int,
        gradient: int,
        dim: int,
        input_dim: int,
        hidden_dim: int,
        heads: int,
        qkv_bias: bool,
        input_mlp: bool,
        norm_kv: bool,
        slot_norm: bool,
        uniform_prior: bool,
        reduce: bool,
        recompute: bool,
        temperature: float,
        scale: float,
        eps: float,
        tol: float,
        double_precision: bool,
        bfloat16_inputs: bool,
    ) -> Config: ...
    def parameters(self) -> list[tuple[str, tuple[int, ...]]]: ...

def forward(
    config: Config,
    x: Array,
    params: tuple[Array, ...],
    state0: Array | None,
    state1: Array | None,
    indices: Array | None,
    mask: Array | None,
    slot_mask: Array | None,
    num_iters: int,
    attention: bool,
    save: bool,
    /,
) -> tuple[Any, ...]: ...
def backward(
    config: Config,
    x: Array,
    params: tuple[Array, ...],
    state0: Array | None,
    state1: Array | None,
    indices: Array | None,
    mask: Array | None,
    slot_mask: Array | None,
    num_iters: int,
    saved: Array,
    d_slots: Array,
    d_attention: Array | None,
    /,
) -> tuple[Any, ...]: ...

SAVED_MOST: int
SAVED_IMAGE: int
SAVED_BATCH: int

def saved_size(config: Config, B: int, N: int, K: int, num_iters: int, /) -> int: ...
def first_nonfinite(array: np.ndarray[Any, Any], /) -> int: ...
def set_num_threads(n: int, /) -> None: ...
def get_num_threads() -> int: ...
def simd() -> tuple[str, dict[str, bool], int]: ...
def select_simd(name: str, /) -> None: ...
