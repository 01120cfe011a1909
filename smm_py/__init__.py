"""Slot Mixture Module, Slot Attention, soft K-Means and Gaussian mixtures on NumPy arrays.

A module turns the N vectors of an encoder's feature map into K slots by a few steps of a learned
clustering, and back-propagates through them. The work is done in C (`smm_py._core`).

>>> import numpy as np, smm_py
>>> x = np.random.default_rng(0).normal(size=(2, 100, 32)).astype("float32")
>>> module = smm_py.SlotMixture(dim=32, num_slots=4, num_iters=3)
>>> out = module(x, seed=0)
>>> out.slots.shape, out.mean.shape, out.prior.shape
((2, 4, 32), (2, 4, 32), (2, 4))
>>> grads = module.backward(out, np.ones_like(out.slots))
>>> grads["x"].shape
(2, 100, 32)

PyTorch modules of the same names are in `smm_py.torch`.
"""

try:
    from . import _core  # noqa: F401
except ImportError as error:
    import importlib.util

    if importlib.util.find_spec("smm_py._core"):
        told = "smm_py's compiled part is there and cannot be loaded"
        if "interpreter" in str(error):
            told = "smm_py cannot be used in a subinterpreter, as NumPy cannot; use the main one"
        raise ImportError(f"{told}. ({error})") from error
    raise ImportError(
        "smm_py's compiled part is missing: this looks like the source folder, not an installation."
        " Run `pip install -e .` in the folder that holds setup.py (or `pip install .` and start "
        f"Python in another folder). ({error})"
    ) from error

from ._arrays import from_bfloat16, to_bfloat16
from ._config import show_config
from ._core import __version__, get_num_threads, set_num_threads, trim
from ._merging import Merged, merge_slots
from ._modules import GaussianMixture, KMeans, Output, SlotAttention, SlotMixture

__all__ = [
    "GaussianMixture",
    "KMeans",
    "Merged",
    "Output",
    "SlotAttention",
    "SlotMixture",
    "__version__",
    "from_bfloat16",
    "get_num_threads",
    "merge_slots",
    "set_num_threads",
    "show_config",
    "to_bfloat16",
    "trim",
]
