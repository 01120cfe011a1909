"""Gaussian mixture and soft K-Means as scikit-learn estimators, computed by the C core.

Their arguments and attributes are those of scikit-learn. `sample_weight` is not supported.

>>> import numpy as np
>>> from smm_py.sklearn import GaussianMixture
>>> X = np.random.default_rng(0).normal(size=(300, 2)) + 6 * (np.arange(300) % 3)[:, None]
>>> models = [GaussianMixture(k, random_state=0).fit(X) for k in (1, 2, 3, 4)]
>>> min(models, key=lambda model: model.bic(X)).n_components
3
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np

from . import _modules
from ._arrays import Array, check_finite, real_array

try:
    from sklearn import cluster, metrics, utils
    from sklearn.base import BaseEstimator, ClusterMixin, DensityMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import validation
except ImportError as error:
    raise ImportError(
        "smm_py.sklearn needs scikit-learn: pip install 'smm_py[sklearn]', or pip install "
        f"scikit-learn. ({error})"
    ) from error

__all__ = ["GaussianMixture", "KMeans"]

PART = 1 << 20  # numbers of a part, where an array of samples x clusters is made in parts


class _Mixture:
    """What a fitted mixture answers: `weights_` (K,), `means_` and `covariances_` (K, D)."""

    weights_: Array
    means_: Array
    covariances_: Array
    lower_bound_: float

    def predict(self, X: Any) -> Array:
        """Most probable cluster of every sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        int64 array of shape (n_samples,)
        """
        return self._labels(self._known(X))

    def predict_proba(self, X: Any) -> Array:
        """Responsibility of every cluster for every sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples, n_clusters)
            Rows sum to 1.
        """
        X = self._known(X)
        attention: Any = _expect(X, self._state(X.dtype), attention=True).attention
        return np.asarray(attention)

    def score_samples(self, X: Any) -> Array:
        """Log-likelihood of every sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples,)
        """
        constant = np.log(self.weights_) - 0.5 * np.log(2 * np.pi * self.covariances_).sum(1)
        found = []
        for rows, attention in self._parts(self._known(X)):
            # p(x) = weight_k p(x | k) / p(k | x) for any k; the most probable one is exact
            k = attention.argmax(1)
            distance = (np.square(rows - self.means_[k]) / self.covariances_[k]).sum(1)
            found.append(constant[k] - 0.5 * distance - np.log(attention.max(1)))
        return np.concatenate(found)

    def score(self, X: Any, y: object = None) -> float:
        """Mean log-likelihood of the samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : ignored

        Returns
        -------
        float
        """
        X = self._known(X)
        return self._log_likelihood(X) / len(X)

    def bic(self, X: Any) -> float:
        """Bayesian information criterion: the lower, the better (Schwarz 1978).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        float
        """
        X = self._known(X)
        return -2 * self._log_likelihood(X) + self._n_parameters() * math.log(len(X))

    def aic(self, X: Any) -> float:
        """Akaike's information criterion: the lower, the better (Akaike 1974).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        float
        """
        X = self._known(X)
        return -2 * self._log_likelihood(X) + 2 * self._n_parameters()

    def _n_parameters(self) -> int:
        raise NotImplementedError

    def _labels(self, X: Array) -> Array:
        return np.concatenate([attention.argmax(1) for _, attention in self._parts(X)])

    def _known(self, X: Any) -> Array:
        validation.check_is_fitted(self)
        return _samples(self, X, reset=False)

    def _state(self, dtype: Any) -> dict[str, Array]:
        return {
            "mean": self.means_.astype(dtype),
            "log_std": (0.5 * np.log(self.covariances_)).astype(dtype),
            "prior": self.weights_.astype(dtype),
        }

    def _log_likelihood(self, X: Array) -> float:
        log_likelihood: Any = _expect(X, self._state(X.dtype)).log_likelihood
        return float(log_likelihood)

    def _parts(self, X: Array) -> Iterator[tuple[Array, Array]]:
        """The rows of a part, and their responsibilities."""
        state = self._state(X.dtype)
        for rows in _rows(X, max(self.means_.shape)):
            attention: Any = _expect(rows, state, attention=True).attention
            yield rows, attention


class GaussianMixture(_Mixture, DensityMixin, BaseEstimator):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Gaussian mixture with diagonal covariances, fitted by EM.

    It takes the place of ``sklearn.mixture.GaussianMixture(covariance_type="diag")``: at an equal
    `random_state` or start, it goes through the same steps. A component that no sample is assigned
    to keeps its mean and variance, which are undefined there.

    Parameters
    ----------
    n_components : int
        K, the number of Gaussians.
    covariance_type : "diag"
        The only one that there is.
    tol : float
        EM stops where `lower_bound_` changes by less in a step; 0: after `max_iter` steps.
    reg_covar : float
        Added to every variance, in squared units of the data.
    max_iter : int
        At most so many steps; 0: the start is the result.
    n_init : int
        Starts, of which the one with the largest `lower_bound_` is kept.
    init_params : {"kmeans", "k-means++", "random", "random_from_data"}
        Responsibilities to start from: clusters of scikit-learn's K-Means; one sample a component,
        chosen as K-Means++ does; uniformly random ones; or one random sample a component.
    weights_init : (K,) array-like, optional
        Start of the weights, in place of those from `init_params`. They sum to 1.
    means_init : (K, D) array-like, optional
        So of the means.
    precisions_init : (K, D) array-like, optional
        So of the variances: their inverses. With all three given, `init_params` is not used.
    random_state : int, RandomState or None
    warm_start : bool
        Another call of `fit` goes on from the last one's result.
    verbose : int
        1 prints each start, 2 each `verbose_interval`-th step too.
    verbose_interval : int

    Attributes
    ----------
    weights_ : (K,) array
    means_ : (K, D) array
    covariances_ : (K, D) array
        Variances.
    precisions_, precisions_cholesky_ : (K, D) arrays
        Their inverses, and the roots of these.
    lower_bound_ : float
        Mean log-likelihood of the samples at the last E step.
    lower_bounds_ : list of float
        Of every step.
    n_iter_ : int
        Steps done.
    converged_ : bool
        Whether they ended by `tol`.
    n_features_in_ : int
    feature_names_in_ : (D,) array of str
        Where X has column names.

    See Also
    --------
    smm_py.GaussianMixture : the differentiable layer.

    Notes
    -----
    float32 samples are computed in float32, others in float64. No array of samples x components is
    made but by `predict_proba`. Dempster, Laird and Rubin (1977), "Maximum likelihood from
    incomplete data via the EM algorithm".

    Examples
    --------
    >>> import numpy as np
    >>> from smm_py.sklearn import GaussianMixture
    >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> model = GaussianMixture(2, random_state=0).fit(X)
    >>> np.sort(model.means_[:, 0]).round(6).tolist()
    [1.0, 10.0]
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: Literal["diag"] = "diag",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: Literal["kmeans", "k-means++", "random", "random_from_data"] = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval

    def fit(self, X: Any, y: object = None) -> Self:
        """Fit the mixture.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            At least two samples, and as many as components.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            Naming the argument.

        Warns
        -----
        ConvergenceWarning
            If the best start did not converge within `max_iter` steps.
        """
        self._check_options()
        X = _samples(self, X, reset=True, least=2)
        _check_enough(X, "n_components", self.n_components)
        given = self._check_starts(X)
        again = self.warm_start and hasattr(self, "converged_")
        if again and self.means_.shape != (self.n_components, X.shape[1]):
            raise ValueError(
                "warm_start needs the n_components and n_features of the last fit, "
                f"{self.means_.shape}, got {(self.n_components, X.shape[1])}"
            )
        rng = utils.check_random_state(self.random_state)
        best: _Run | None = None
        for i in range(1 if again else self.n_init):
            if self.verbose:
                print(f"start {i + 1}")
            if again:
                run = self._climb(X, self._state(X.dtype), self.lower_bound_)
            else:
                run = self._climb(X, {**self._draw(X, rng, given), **given}, -math.inf)
            if best is None or run.bound > best.bound:
                best = run
        assert best is not None
        if not best.converged and self.max_iter:
            _warn_of_steps(self.max_iter)
        self.weights_ = best.state["prior"] if not self.max_iter else _to_one(best.state["prior"])
        self.means_ = best.state["mean"]
        self.covariances_ = best.variance
        self.lower_bound_ = best.bound
        self.lower_bounds_ = best.bounds
        self.n_iter_ = len(best.bounds)
        self.converged_ = best.converged
        return self

    def fit_predict(self, X: Any, y: object = None) -> Array:
        """Fit the mixture, and tell the most probable component of every sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : ignored

        Returns
        -------
        int64 array of shape (n_samples,)
        """
        return self.fit(X).predict(X)

    def sample(self, n_samples: int = 1) -> tuple[Array, Array]:
        """Draw samples from the fitted mixture.

        Parameters
        ----------
        n_samples : int

        Returns
        -------
        X : array of shape (n_samples, n_features)
        y : int64 array of shape (n_samples,)
            The component of each, in order.
        """
        validation.check_is_fitted(self)
        utils.check_scalar(n_samples, "n_samples", Integral, min_val=1)
        rng = utils.check_random_state(self.random_state)
        weights = _to_one(self.weights_.astype(float))
        y = np.repeat(np.arange(len(weights)), rng.multinomial(n_samples, weights))
        noise = rng.standard_normal((n_samples, self.means_.shape[1]))
        return self.means_[y] + noise * np.sqrt(self.covariances_[y]), y

    @property
    def precisions_(self) -> Array:
        return 1 / self.covariances_

    @property
    def precisions_cholesky_(self) -> Array:
        return 1 / np.sqrt(self.covariances_)

    def _n_parameters(self) -> int:
        return 2 * self.means_.size + len(self.means_) - 1

    def _check_options(self) -> None:
        _check_choice("covariance_type", self.covariance_type, ("diag",))
        _check_choice("init_params", self.init_params, tuple(_STARTS))
        counts = {"n_components": 1, "max_iter": 0, "n_init": 1, "verbose": 0}
        for name, least in {**counts, "verbose_interval": 1}.items():
            utils.check_scalar(getattr(self, name), name, Integral, min_val=least)
        for name in ("tol", "reg_covar"):
            utils.check_scalar(getattr(self, name), name, Real, min_val=0)

    def _check_starts(self, X: Array) -> dict[str, Array]:
        """Those parts of the state that the caller has given."""
        shape = (self.n_components, X.shape[1])
        given = {}
        if self.weights_init is not None:
            weights = _start("weights_init", self.weights_init, shape[:1], X.dtype)
            if (weights < 0).any() or abs(weights.sum(dtype=float) - 1) > 1e-6:
                raise ValueError(
                    "weights_init must be at least 0 and sum to 1, got a least weight of "
                    f"{weights.min():g} and a sum of {weights.sum():g}"
                )
            given["prior"] = weights
        if self.means_init is not None:
            given["mean"] = _start("means_init", self.means_init, shape, X.dtype)
        if self.precisions_init is not None:
            precisions = _start("precisions_init", self.precisions_init, shape, X.dtype)
            if (precisions <= 0).any():
                raise ValueError(f"precisions_init must be above 0, got {precisions.min():g}")
            given["log_std"] = -0.5 * np.log(precisions)
        return given

    def _draw(self, X: Array, rng: Any, given: dict[str, Array]) -> dict[str, Array]:
        """The state that an M step makes of drawn responsibilities; nothing where all is given."""
        if len(given) == 3:
            return {}
        sums, means, variances = _STARTS[self.init_params](X, self.n_components, rng)
        log_std = 0.5 * np.log(np.maximum(variances + self.reg_covar, np.finfo(X.dtype).tiny))
        state = {"prior": sums / len(X), "mean": means, "log_std": log_std}
        return {name: value.astype(X.dtype) for name, value in state.items()}

    def _climb(self, X: Array, state: dict[str, Array], bound: float) -> _Run:
        """Steps of EM until the likelihood changes by less than tol."""
        run = _Run(state, np.exp(2 * state["log_std"]), bound, [])
        module = _modules.GaussianMixture(
            X.shape[1], self.n_components, 1, var_floor=float(self.reg_covar)
        )
        steps = 2 if self.tol else self.max_iter
        while len(run.bounds) < self.max_iter and not run.converged:
            steps = min(steps, self.max_iter - len(run.bounds))
            out = module(X, init=run.state, num_iters=steps, history=True, grad=False)
            assert out.history is not None
            bounds = [float(v) / len(X) for v in out.history["log_likelihood"]]
            changes = np.abs(np.diff([run.bound, *bounds]))
            done = np.flatnonzero(changes < self.tol)
            if len(done) and done[0] + 1 < steps:  # too far: as many as are wanted
                steps = int(done[0]) + 1
                out = module(X, init=run.state, num_iters=steps, grad=False)
            variance: Any = out.variance
            self._tell(len(run.bounds), bounds[:steps], changes)
            bounds = run.bounds + bounds[:steps]
            run = _Run(out.state, variance, bounds[-1], bounds, len(done) > 0)
            steps = self._further(bounds)
        if self.verbose:
            print(f"{'converged' if run.converged else 'ended'} at {run.bound:.6f}")
        return run

    def _further(self, bounds: list[float]) -> int:
        """Half of the steps that are left if the changes go on to shrink as they do."""
        before, last = np.abs(np.diff(bounds[-3:])) if len(bounds) > 2 else (0.0, 0.0)
        if not 0 < self.tol < last < before:
            return 1
        return max(1, int(0.5 * math.log(self.tol / last) / math.log(last / before)))

    def _tell(self, before: int, bounds: list[float], changes: Array) -> None:
        for i, (bound, change) in enumerate(zip(bounds, changes), before + 1):
            if self.verbose > 1 and i % self.verbose_interval == 0:
                print(f"  step {i}: mean log-likelihood {bound:.6f}, change {change:.6f}")


class _Run:
    """What EM has come to from one start."""

    def __init__(
        self,
        state: dict[str, Array],
        variance: Array,
        bound: float,
        bounds: list[float],
        converged: bool = False,
    ) -> None:
        self.state = state
        self.variance = variance
        self.bound = bound
        self.bounds = bounds
        self.converged = converged


class KMeans(_Mixture, ClusterMixin, BaseEstimator):
    """Soft K-Means: EM for Gaussians of equal weight and of one fixed variance.

    The responsibilities are a softmax of -`scale_` times the squared distances. Likelihoods are
    those of K Gaussians of weight 1/K and of variance 1 / (2 `scale_`) in every direction.

    Parameters
    ----------
    n_clusters : int
        K, the number of centres.
    scale : float or "auto"
        The larger, the harder the assignments; a very large one gives Lloyd's algorithm. "auto":
        1 / (2 s²), with s² the mean squared distance per channel from a sample to the nearest
        starting centre (of the best start), so that the unit of the data does not matter.
    init : {"k-means++", "random"} or (K, D) array-like
        Where centres start: at samples chosen as K-Means++ does, at random samples, or there.
    n_init : int
        Starts, of which the one with the largest `lower_bound_` is kept; one where `init` is an
        array.
    max_iter : int
        At most so many steps.
    tol : float
        Where no centre has moved further, one more step is the last. In units of the root mean
        variance of the channels; the movement is a root mean square over channels.
    random_state : int, RandomState or None

    Attributes
    ----------
    cluster_centers_ : (K, D) array
    labels_ : (n_samples,) int64 array
        Nearest centre of every sample.
    inertia_ : float
        Sum of squared distances to the nearest centres.
    scale_ : float
    weights_ : (K,) array
        1/K each.
    means_ : (K, D) array
        `cluster_centers_`.
    covariances_ : (K, D) array
        1 / (2 `scale_`) everywhere.
    lower_bound_ : float
        Mean log-likelihood of the samples under the result.
    n_iter_ : int
        Steps done.
    converged_ : bool
        Whether they ended by `tol`.
    n_features_in_ : int
    feature_names_in_ : (D,) array of str
        Where X has column names.

    See Also
    --------
    smm_py.KMeans : the differentiable layer.

    Notes
    -----
    `score` is the mean log-likelihood, and not the negative inertia as in `sklearn.cluster.KMeans`.
    MacKay (2003), "Information Theory, Inference, and Learning Algorithms", algorithm 20.7.

    Examples
    --------
    >>> import numpy as np
    >>> from smm_py.sklearn import KMeans
    >>> X = np.array([[1.0, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> model = KMeans(2, random_state=0).fit(X)
    >>> model.labels_.tolist() in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    True
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        scale: float | Literal["auto"] = "auto",
        init: Any = "k-means++",
        n_init: int = 1,
        max_iter: int = 300,
        tol: float = 1e-4,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.scale = scale
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> Self:
        """Find the centres.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            At least as many samples as clusters.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            Naming the argument.

        Warns
        -----
        ConvergenceWarning
            If the best start did not converge within `max_iter` steps.
        """
        for name in ("n_clusters", "n_init", "max_iter"):
            utils.check_scalar(getattr(self, name), name, Integral, min_val=1)
        utils.check_scalar(self.tol, "tol", Real, min_val=0)
        auto = isinstance(self.scale, str) and self.scale == "auto"
        if not auto:
            utils.check_scalar(self.scale, "scale", Real, min_val=0, include_boundaries="neither")
        X = _samples(self, X, reset=True)
        _check_enough(X, "n_clusters", self.n_clusters)
        starts = self._starts(X)
        spread = float(X.var(0, dtype=float).mean())
        self.scale_ = _scale(X, starts, spread) if auto else float(self.scale)
        tol = self.tol * math.sqrt(spread)
        module = _modules.KMeans(
            X.shape[1], self.n_clusters, int(self.max_iter), scale=self.scale_, tol=tol
        )
        state = {
            "log_std": np.full((self.n_clusters, X.shape[1]), -0.5 * math.log(2 * self.scale_)),
            "prior": np.full(self.n_clusters, 1 / self.n_clusters),
        }
        state = {name: value.astype(X.dtype) for name, value in state.items()}
        self.lower_bound_ = -math.inf
        for start in starts:
            out = module(X, init={"slots": start}, history=True, grad=False)
            found: Any = _expect(X, {**state, "mean": out.slots}).log_likelihood
            bound = float(found) / len(X)
            if bound > self.lower_bound_:
                history: Any = out.history
                self.lower_bound_ = bound
                self.cluster_centers_ = out.slots
                self.n_iter_ = int(out.iterations)
                # the last step may have been reached by max_iter alone
                self.converged_ = bool(history["movement"][self.n_iter_ - 1] <= tol)
        if not self.converged_:
            _warn_of_steps(self.max_iter)
        self.weights_ = state["prior"]
        self.labels_ = self._labels(X)
        self.inertia_ = float(np.square(X - self.means_[self.labels_]).sum(dtype=float))
        return self

    @property
    def means_(self) -> Array:  # type: ignore[override]
        return self.cluster_centers_

    @property
    def covariances_(self) -> Array:  # type: ignore[override]
        return np.full_like(self.cluster_centers_, 0.5 / self.scale_)

    def _n_parameters(self) -> int:
        return self.means_.size + (self.scale == "auto")

    def _starts(self, X: Array) -> list[Array]:
        clusters = self.n_clusters
        if not isinstance(self.init, str):
            return [_start("init", self.init, (clusters, X.shape[1]), X.dtype)]
        _check_choice("init", self.init, ("k-means++", "random"))
        rng = utils.check_random_state(self.random_state)
        chosen = _plus_plus if self.init == "k-means++" else _random_rows
        return [X[chosen(X, clusters, rng)] for _ in range(self.n_init)]


# -- starts --------------------------------------------------------------------------------------

Moments = tuple[Array, Array, Array]  # sums of responsibilities, means, variances; float64


def _plus_plus(X: Array, count: int, rng: Any) -> Array:
    return np.asarray(cluster.kmeans_plusplus(X, count, random_state=rng)[1])


def _random_rows(X: Array, count: int, rng: Any) -> Array:
    return np.asarray(rng.choice(len(X), size=count, replace=False))


def _at_rows(X: Array, rows: Array) -> Moments:
    means = X[rows].astype(float)
    return np.ones(len(rows)), means, np.zeros_like(means)


def _of_labels(X: Array, labels: Array, count: int) -> Moments:
    def sums(values: Array) -> Array:
        return np.bincount(labels, values, count)

    sizes = np.bincount(labels, minlength=count).astype(float)
    means, variances = np.empty((2, count, X.shape[1]))
    for d, x in enumerate(X.T):
        means[:, d] = sums(x) / np.maximum(sizes, 1)
        variances[:, d] = sums(np.square(x - means[labels, d])) / np.maximum(sizes, 1)
    return sizes, means, variances


def _kmeans(X: Array, count: int, rng: Any) -> Moments:
    options: dict[str, Any] = dict(n_init=1, random_state=rng)
    return _of_labels(X, np.asarray(cluster.KMeans(count, **options).fit(X).labels_), count)


def _uniform(X: Array, count: int, rng: Any) -> Moments:
    centre = X.mean(0, dtype=float)
    sizes, first, second = np.zeros(count), *np.zeros((2, count, X.shape[1]))
    for rows in _rows(X, max(count, X.shape[1])):
        shares = rng.uniform(size=(len(rows), count))
        shares /= shares.sum(1, keepdims=True)
        values = rows - centre
        sizes += shares.sum(0)
        first += shares.T @ values
        second += shares.T @ np.square(values)
    first /= sizes[:, None]
    return sizes, centre + first, second / sizes[:, None] - np.square(first)


_STARTS: dict[str, Callable[[Array, int, Any], Moments]] = {
    "kmeans": _kmeans,
    "k-means++": lambda X, count, rng: _at_rows(X, _plus_plus(X, count, rng)),
    "random": _uniform,
    "random_from_data": lambda X, count, rng: _at_rows(X, _random_rows(X, count, rng)),
}


def _scale(X: Array, starts: list[Array], spread: float) -> float:
    variance: float = min(
        float(metrics.pairwise_distances_argmin_min(X, s, metric="sqeuclidean")[1].mean())
        for s in starts
    )
    variance /= X.shape[1]
    return 0.5 / max(variance, 1e-6 * (spread or 1.0))  # 0 where centres start at every sample


# -- calls and checks ----------------------------------------------------------------------------


def _expect(X: Array, state: dict[str, Array], attention: bool = False) -> _modules.Output:
    """One E step of a mixture."""
    module = _modules.GaussianMixture(X.shape[1], len(state["mean"]), 1, var_floor=0.0)
    return module(X, init=state, attention=attention, grad=False)


def _rows(X: Array, width: int) -> Iterator[Array]:
    step = max(1, PART // width)
    return (X[i : i + step] for i in range(0, len(X), step))


def _to_one(weights: Array) -> Array:
    return np.asarray(weights / weights.sum())


def _samples(estimator: Any, X: Any, reset: bool, least: int = 1) -> Array:
    options: dict[str, Any] = dict(dtype=[np.float64, np.float32], order="C", reset=reset)
    options["ensure_min_samples"] = least
    if hasattr(validation, "validate_data"):
        return np.asarray(validation.validate_data(estimator, X, **options))
    return np.asarray(estimator._validate_data(X, **options))  # before scikit-learn 1.6


def _check_enough(X: Array, name: str, count: int) -> None:
    if len(X) < count:
        raise ValueError(f"{name} must be at most n_samples = {len(X)}, got {count}")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _start(name: str, value: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    array = real_array(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    check_finite(name, array)
    return array.astype(dtype)


def _warn_of_steps(most: int) -> None:
    warnings.warn(
        f"the best start did not converge within max_iter = {most} steps: increase max_iter or tol",
        ConvergenceWarning,
        stacklevel=3,
    )
