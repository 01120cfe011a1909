from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Memory = Array | tuple[int, tuple[int, ...]]  # or (address, shape)

__version__: str
KINDS: dict[str, int]
GRADIENTS: dict[str, int]
OPTIONS: frozenset[str]
WIDTH_MOST: int

class Config:
    def __new__(
        cls,
        kind: int,
        options: dict[str, float],
        double_precision: bool = False,
        bfloat16_inputs: bool = False,
    ) -> Config: ...
    def parameters(self) -> dict[str, tuple[int, ...]]: ...

class Outputs(NamedTuple):
    slots: Array
    mean: Array | None
    variance: Array | None
    prior: Array | None
    log_likelihood: Array | None
    attention: Array | None
    iterations: Array
    saved: Array | None
    state_mean: Array | None
    state_log_std: Array | None
    state_prior: Array | None
    step_log_likelihood: Array | None
    step_prior: Array | None
    step_movement: Array | None

class Gradients(NamedTuple):
    x: Array
    mean: Array | None
    log_std: Array | None
    prior: Array | None
    params: tuple[Array, ...]

def forward(
    config: Config,
    x: Memory,
    params: tuple[Memory, ...],
    num_iters: int,
    *,
    mean: Memory | None = None,
    log_std: Memory | None = None,
    prior: Memory | None = None,
    indices: Memory | None = None,
    mask: Memory | None = None,
    slot_mask: Memory | None = None,
    var_floor: Memory | None = None,
    attention: bool = False,
    history: bool = False,
    state: bool = False,
    save: bool = False,
) -> Outputs: ...
def backward(
    config: Config,
    x: Memory,
    params: tuple[Memory, ...],
    num_iters: int,
    *,
    mean: Memory | None = None,
    log_std: Memory | None = None,
    prior: Memory | None = None,
    indices: Memory | None = None,
    mask: Memory | None = None,
    slot_mask: Memory | None = None,
    var_floor: Memory | None = None,
    saved: Memory,
    d_slots: Memory | None = None,
    d_mean: Memory | None = None,
    d_variance: Memory | None = None,
    d_prior: Memory | None = None,
    d_log_likelihood: Memory | None = None,
    d_attention: Memory | None = None,
) -> Gradients: ...
def saved_size(config: Config, B: int, N: int, K: int, num_iters: int, /) -> int: ...
def saved_rule(config: Config, K: int, num_iters: int, /) -> dict[str, int]: ...
def trim() -> int: ...
def first_nonfinite(array: Array, /) -> int: ...
def set_num_threads(n: int, /) -> None: ...
def get_num_threads() -> int: ...
def simd() -> tuple[str, dict[str, bool], int]: ...
def select_simd(name: str, /) -> None: ...
