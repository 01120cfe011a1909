"""The Fréchet distance of two Gaussians, the formula of FID (Heusel et al. 2017), in NumPy."""

from __future__ import annotations

import numpy as np


def feature_statistics(features):
    """Mean (D,) and unbiased covariance (D, D), float64, of features (N, D); N is at least 2."""
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < 2 or not features.shape[1]:
        raise ValueError(f"features must have shape (N, D) with N at least 2, got {features.shape}")
    features = _finite(features, "features")
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(mean1, cov1, mean2, cov2) -> float:
    """The squared 2-Wasserstein distance of two Gaussians.

    |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^{1/2})

    mean1, mean2 : (D,). cov1, cov2 : (D, D), symmetric and positive semidefinite; they may be
        singular, as where there are fewer features than dimensions.

    It is the formula of FID where the features are those of `inception.inception_features`; of
    other features it is not FID. tr (C1 C2)^{1/2} is taken as the sum of the singular values of
    C1^{1/2} C2^{1/2}: unlike the square roots of the eigenvalues of C1 C2, those of a singular
    product keep full precision near 0.
    """
    mean1, cov1 = _gaussian(mean1, cov1, "1")
    mean2, cov2 = _gaussian(mean2, cov2, "2")
    if mean1.shape != mean2.shape:
        raise ValueError(f"mean2 must have mean1's shape {mean1.shape}, got {mean2.shape}")
    product = np.linalg.svd(_root(cov1, "cov1") @ _root(cov2, "cov2"), compute_uv=False).sum()
    distance = ((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * product
    return max(float(distance), 0.0)  # rounding may leave equal Gaussians just below


def _gaussian(mean, cov, which):
    mean, cov = _finite(np.asarray(mean), f"mean{which}"), _finite(np.asarray(cov), f"cov{which}")
    if mean.ndim != 1 or not mean.size:
        raise ValueError(f"mean{which} must have shape (D,), got {mean.shape}")
    if cov.shape != 2 * mean.shape:
        raise ValueError(f"cov{which} must have shape {2 * mean.shape}, got {cov.shape}")
    if not np.allclose(cov, cov.T, rtol=1e-8, atol=1e-10 * np.abs(cov).max()):
        raise ValueError(f"cov{which} must be symmetric")
    return mean, cov


def _finite(array, name):
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold numbers, got {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array.astype(np.float64)


def _root(cov, name):
    """The symmetric square root; eigenvalues within rounding of 0 are taken as 0."""
    values, vectors = np.linalg.eigh(cov)
    largest = np.abs(values).max()
    if values[0] < -1e-6 * largest:
        raise ValueError(f"{name} must be positive semidefinite, got the eigenvalue {values[0]:g}")
    rounding = len(cov) * np.finfo(np.float64).eps * largest
    return vectors * np.sqrt(np.where(values > rounding, values, 0)) @ vectors.T
