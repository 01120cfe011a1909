"""PyTorch modules: the C core for CPU tensors, PyTorch operations for other devices.

>>> import torch
>>> from smm_py.torch import SlotMixture
>>> module = SlotMixture(dim=32, num_slots=4, num_iters=3, norm_kv=True, start="inputs")
>>> slots, attention = module(torch.randn(2, 100, 32), return_attention=True)
>>> slots.shape, attention.shape
(torch.Size([2, 4, 32]), torch.Size([2, 100, 4]))
>>> slots.sum().backward()

Gradients flow through every output, on every device to the same values. On the CPU they are of
first order: differentiating them again, and the transforms of `torch.func`, raise. Submodules hold
parameters alone and are not called, so hooks on them do not run, but for those of pruning, the old
weight_norm and spectral_norm; parametrizations do. `smm_py.torch.lean` says how to change a
formula. Exports to ONNX run in PyTorch operations, which `force_lean` asks for elsewhere.

A model that uses the package `slot-attention` changes one line, its import:

>>> from smm_py.torch.compat import SlotAttention
>>> SlotAttention(num_slots=5, dim=32, iters=3)(torch.randn(2, 100, 32)).shape
torch.Size([2, 5, 32])
"""

try:
    import torch as _  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "smm_py.torch needs PyTorch, which is not installed: pip install 'torch>=2.5', or choose a "
        "build for your machine at https://pytorch.org/get-started/locally/",
        name="torch",
    ) from error

from .._merging import Merged
from ._merging import merge_slots
from ._modules import GaussianMixture, KMeans, SlotAttention, SlotMixture, force_lean
from .lean import Formulas, Output

__all__ = [
    "Formulas",
    "GaussianMixture",
    "KMeans",
    "Merged",
    "Output",
    "SlotAttention",
    "SlotMixture",
    "force_lean",
    "merge_slots",
]
