"""The features of FID: the Inception network of 2015, from a file that the user has."""

from __future__ import annotations

import warnings
from argparse import ArgumentTypeError
from pathlib import Path

import numpy as np
import torch

from ..shared.files import first_line

FEATURES = 2048


def inception_features(path, images, batch_size=64, device="cpu") -> np.ndarray:
    """Features (N, 2048) float32 of images (N, H, W, 3) uint8, for `metrics.frechet_distance`.

    `path` is the TorchScript file `inception-2015-12-05.pt` of StyleGAN2-ADA and clean-fid (Parmar
    et al. 2022), which holds the weights of the original FID and resizes to 299 x 299 itself: it
    takes (B, 3, H, W) uint8 and `return_features=True`. Nothing is downloaded. Only of these
    features may the distance be called FID; state the number of pictures and their size beside it.

    Raises FileNotFoundError or ValueError that names the file where it is missing, no TorchScript,
    or gives other features, and TypeError or ValueError for other images.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise TypeError(f"images must hold uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[3] != 3 or not images.size:
        raise ValueError(f"images must have shape (N, H, W, 3), got {images.shape}")
    network = _load(path, device)
    batches = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
    with torch.inference_mode():
        return np.concatenate([_features(network, path, batch, device) for batch in batches])


def inception_file(path):
    """The type of a command line's option: the path, of a file that can be loaded."""
    try:
        _load(path, "cpu")
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(first_line(error)) from error
    return path


def _load(path, device):
    if not Path(path).is_file():
        raise FileNotFoundError(f"Inception file {path} is missing")
    try:
        with warnings.catch_warnings():
            # newer PyTorch deprecates TorchScript, the only form of this file
            warnings.simplefilter("ignore")
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"Inception file {path} is no TorchScript: {error}") from error


def _features(network, path, images, device):
    pictures = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)
    try:
        features = network(pictures, return_features=True)
    except RuntimeError as error:
        what = "cannot be run on uint8 pictures with return_features=True"
        raise ValueError(f"Inception file {path} {what}: {error}") from error
    given = isinstance(features, torch.Tensor)
    expected, got = (
        (len(images), FEATURES),
        tuple(features.shape) if given else type(features).__name__,
    )
    if got != expected:
        raise ValueError(
            f"Inception file {path} must give features of shape {expected}, got {got}: "
            "no FID without them"
        )
    return features.float().cpu().numpy()
