"""smm_py.sklearn beside scikit-learn: the same start, steps and number of threads."""

from __future__ import annotations

import time
import warnings

import numpy as np
import sklearn.cluster
import sklearn.mixture
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

import smm_py.sklearn

from .measure import interleave, set_threads, summary

SHAPES = (  # N, D, K
    (1_000, 2, 3),
    (10_000, 2, 5),
    (10_000, 16, 10),
    (100_000, 3, 8),
    (100_000, 16, 10),
    (20_000, 64, 10),
    (20_000, 64, 32),
)
STEPS = 20


def samples(N, D, K, dtype):
    """Around K centres, overlapping."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(K, D))
    return (centres[rng.integers(0, K, N)] + rng.normal(size=(N, D))).astype(dtype)


def mixtures(X, K):
    """Name -> estimator: from one start, and as by default but for a tolerance."""
    start = dict(
        means_init=X[:K],
        weights_init=np.full(K, 1 / K),
        precisions_init=np.tile(1 / X.var(0), (K, 1)),
        max_iter=STEPS,
        tol=0.0,
    )
    for name, options in (("steps", start), ("whole", dict(tol=1e-4, random_state=0))):
        options = options | dict(n_components=K, covariance_type="diag")
        yield name, "smm_py", smm_py.sklearn.GaussianMixture(**options)
        yield name, "scikit-learn", sklearn.mixture.GaussianMixture(**options)


def k_means(X, K):
    options = dict(n_clusters=K, init=X[:K], max_iter=STEPS, tol=0.0)
    yield "k-means", "smm_py", smm_py.sklearn.KMeans(**options, scale=1.0)
    yield "k-means", "scikit-learn", sklearn.cluster.KMeans(**options, n_init=1)


def beside_sklearn(threads, seconds):
    """Each shape: likelihoods agree, then times of `fit`."""
    set_threads(threads)
    # processor time: other work on the machine hardly disturbs it
    clock = time.process_time if threads == 1 else time.perf_counter
    for dtype in ("float64", "float32"):
        for shape in SHAPES:
            X, K = samples(*shape, dtype), shape[2]
            for way in ("steps", "whole", "k-means"):
                models = [m for m in (*mixtures(X, K), *k_means(X, K)) if m[0] == way]
                with warnings.catch_warnings(), threadpool_limits(threads):
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    fitted = {name: model.fit(X) for _, name, model in models}
                    row = {"N": shape, "kind": way, "dtype": dtype, "threads": threads}
                    row["steps"] = {name: int(model.n_iter_) for name, model in fitted.items()}
                    if way != "k-means":
                        bounds = [float(model.lower_bound_) for model in fitted.values()]
                        row["difference"] = abs(bounds[0] - bounds[1])
                    calls = {name: lambda m=model, x=X: m.fit(x) for name, model in fitted.items()}
                    row["time"] = summary(interleave(calls, seconds / 5, most=20, clock=clock))
                yield row
