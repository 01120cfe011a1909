"""smm_py.sklearn against scikit-learn's own diagonal mixture and K-Means."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn")
from sklearn import cluster, mixture
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import check_estimator

from smm_py.sklearn import GaussianMixture, KMeans

K, D = 5, 4
BAD = [
    (GaussianMixture, dict(covariance_type="full"), ValueError),
    (GaussianMixture, dict(init_params="paper"), ValueError),
    (GaussianMixture, dict(n_components=0), ValueError),
    (GaussianMixture, dict(n_components=2.0), TypeError),
    (GaussianMixture, dict(n_components=401), ValueError),
    (GaussianMixture, dict(tol=-1.0), ValueError),
    (GaussianMixture, dict(reg_covar="1"), TypeError),
    (GaussianMixture, dict(max_iter=-1), ValueError),
    (GaussianMixture, dict(n_init=0), ValueError),
    (GaussianMixture, dict(verbose=-1), ValueError),
    (GaussianMixture, dict(verbose_interval=0), ValueError),
    (GaussianMixture, dict(means_init=np.zeros((1, 3))), ValueError),
    (GaussianMixture, dict(means_init=[[0, 0, np.nan, 0]]), ValueError),
    (GaussianMixture, dict(weights_init=[0.7]), ValueError),
    (GaussianMixture, dict(precisions_init=np.zeros((1, D))), ValueError),
    (KMeans, dict(n_clusters=401), ValueError),
    (KMeans, dict(n_clusters=-1), ValueError),
    (KMeans, dict(scale=0.0), ValueError),
    (KMeans, dict(scale="big"), TypeError),
    (KMeans, dict(init="kmeans"), ValueError),
    (KMeans, dict(init=np.zeros((2, D))), ValueError),
    (KMeans, dict(n_init="auto"), TypeError),
    (KMeans, dict(max_iter=0), ValueError),
    (KMeans, dict(tol=-1e-3), ValueError),
]


def samples(count=400, dtype="float64"):
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(K, D))
    return (centres[rng.integers(0, K, count)] + rng.normal(size=(count, D))).astype(dtype)


def both(X, **options):
    options = dict(n_components=K, random_state=0) | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ours = GaussianMixture(**options).fit(X)
        return ours, mixture.GaussianMixture(covariance_type="diag", **options).fit(X)


def assert_same(ours, theirs, X):
    assert (ours.n_iter_, ours.converged_) == (theirs.n_iter_, theirs.converged_)
    assert abs(ours.lower_bound_ - theirs.lower_bound_) < 1e-6
    if hasattr(theirs, "lower_bounds_"):  # since scikit-learn 1.7
        np.testing.assert_allclose(ours.lower_bounds_, theirs.lower_bounds_, rtol=1e-6)
    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-6, atol=1e-9)
    for name in ("score", "score_samples", "predict_proba", "bic", "aic"):
        found, wanted = (getattr(model, name)(X) for model in (ours, theirs))
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
    assert (ours.predict(X) == theirs.predict(X)).all()


@pytest.mark.filterwarnings("ignore")  # what the checks provoke
@pytest.mark.parametrize("estimator", [GaussianMixture(), KMeans()])
def test_estimator_checks(estimator):
    check_estimator(estimator)


@pytest.mark.parametrize("start", ["kmeans", "k-means++", "random", "random_from_data"])
@pytest.mark.parametrize(
    "options", [{}, dict(tol=0.0, max_iter=7), dict(tol=1e-6, max_iter=300, n_init=3)]
)
def test_steps_are_scikit_learns(start, options):
    """The same random numbers, steps and stop, so the same mixture."""
    X = samples()
    assert_same(*both(X, init_params=start, **options), X)


@pytest.mark.parametrize("given", ["weights", "means", "precisions", "weights means precisions"])
def test_a_given_start(given):
    X = samples()
    start = {
        "weights": np.arange(1, K + 1) / 15,
        "means": X[:K],
        "precisions": np.linspace(0.5, 2, K * D).reshape(K, D),
    }
    options = {f"{name}_init": start[name] for name in given.split()}
    assert_same(*both(X, **options, tol=1e-5), X)
    unmoved = GaussianMixture(K, **options, max_iter=0, random_state=0).fit(X)
    assert unmoved.n_iter_ == 0 and unmoved.lower_bounds_ == []
    for name in given.split():
        np.testing.assert_allclose(getattr(unmoved, f"{name}_"), start[name], rtol=1e-12)


def test_warm_start_goes_on():
    X = samples()
    ours, theirs = both(X, max_iter=3, tol=0.0, warm_start=True)
    with pytest.warns(ConvergenceWarning):
        ours.fit(X)
    with pytest.warns(ConvergenceWarning):
        theirs.fit(X)
    assert_same(ours, theirs, X)
    with pytest.raises(ValueError, match="warm_start"):
        ours.set_params(n_components=2).fit(X)


def test_float32_stays():
    X = samples(4000)
    wide, _ = both(X, tol=0.0, max_iter=5)
    narrow, _ = both(X.astype("float32"), tol=0.0, max_iter=5)
    assert narrow.means_.dtype == narrow.score_samples(X.astype("float32")).dtype == np.float32
    assert abs(narrow.lower_bound_ - wide.lower_bound_) < 1e-5
    np.testing.assert_allclose(narrow.means_, wide.means_, atol=1e-4)


def test_scores_in_parts(monkeypatch):
    X = samples()
    ours, theirs = both(X)
    monkeypatch.setattr("smm_py.sklearn.PART", 70)
    assert_same(ours, theirs, X)
    assert_same(*both(X, init_params="random"), X)


def test_number_of_components_by_bic():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 2)) + 6 * np.array([[0, 0], [1, 0], [0, 1]])[np.arange(600) % 3]
    models = [GaussianMixture(k, random_state=0).fit(X) for k in range(1, 6)]
    assert min(models, key=lambda model: model.bic(X)).n_components == 3


def test_drawn_samples():
    model = both(samples())[0]
    X, y = model.sample(200_000)
    shares = np.bincount(y) / len(y)
    error = np.sqrt(model.weights_ / len(y))  # of a share, at most
    assert (np.abs(shares - model.weights_) < 5 * error).all()
    for k in range(K):
        error = np.sqrt(model.covariances_[k] / (y == k).sum())
        assert (np.abs(X[y == k].mean(0) - model.means_[k]) < 5 * error).all()
        np.testing.assert_allclose(X[y == k].var(0), model.covariances_[k], rtol=0.05)


def test_verbose_tells(capsys):
    GaussianMixture(2, random_state=0, verbose=2, verbose_interval=1, n_init=2).fit(samples())
    told = capsys.readouterr().out
    assert told.count("start") == 2 and told.count("converged at") == 2 and "  step 1: " in told


def test_hard_k_means_is_lloyds():
    X = samples()
    theirs = cluster.KMeans(K, init=X[:K], n_init=1, tol=0).fit(X)
    ours = KMeans(K, init=X[:K], scale=1e5, tol=0.0, max_iter=100).fit(X)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-9)
    assert (ours.labels_ == theirs.labels_).all() and (ours.predict(X) == theirs.labels_).all()
    assert abs(ours.inertia_ / theirs.inertia_ - 1) < 1e-9


def test_soft_k_means_is_a_mixture():
    """Its likelihoods are those of scikit-learn's spherical mixture with its numbers."""
    X = samples()
    ours = KMeans(K, scale=0.7, random_state=0).fit(X)
    theirs = mixture.GaussianMixture(K, covariance_type="spherical")
    theirs.weights_, theirs.means_ = np.full(K, 1 / K), ours.cluster_centers_
    theirs.precisions_cholesky_ = np.full(K, np.sqrt(2 * 0.7))
    np.testing.assert_allclose(ours.score_samples(X), theirs.score_samples(X), rtol=1e-9)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-12)
    assert abs(ours.lower_bound_ - theirs.score(X)) < 1e-9
    assert ours.bic(X) == pytest.approx(-2 * theirs.score(X) * 400 + K * D * np.log(400))
    shares = ours.predict_proba(X)
    centres = shares.T @ X / shares.sum(0)[:, None]  # a fixed point
    np.testing.assert_allclose(ours.cluster_centers_, centres, atol=1e-3)


def test_starts_of_k_means():
    X = samples()
    one, many = (KMeans(K, n_init=n, random_state=1, init="random", scale=1.0) for n in (1, 20))
    assert many.fit(X).lower_bound_ > one.fit(X).lower_bound_
    for unit in (1e-3, 1e4):  # "auto" knows no unit
        ours, other = (KMeans(K, random_state=0).fit(x) for x in (X, X * unit))
        np.testing.assert_allclose(ours.cluster_centers_, other.cluster_centers_ / unit, rtol=1e-6)
        assert (ours.labels_ == other.labels_).all()
    few = KMeans(3, random_state=0).fit(np.repeat(np.eye(3), 2, 0))
    assert few.inertia_ < 1e-20 and len(set(few.labels_)) == 3


def test_steps_that_do_not_suffice():
    for model in (GaussianMixture(K, max_iter=1), KMeans(K, max_iter=1)):
        with pytest.warns(ConvergenceWarning, match="max_iter = 1"):
            assert not model.fit(samples()).converged_


@pytest.mark.parametrize("kind, options, error", BAD)
def test_wrong_arguments(kind, options, error):
    with pytest.raises(error, match=next(iter(options))):
        kind(**options).fit(samples())


def test_what_is_fitted_travels():
    X = samples()
    for model in (GaussianMixture(K, random_state=0), KMeans(K, random_state=0)):
        with pytest.raises(NotFittedError):
            model.predict(X)
        labels = model.fit_predict(X)
        assert (pickle.loads(pickle.dumps(model)).predict(X) == labels).all()
        assert not hasattr(clone(model), "n_iter_")


def test_without_scikit_learn():
    code = "import sys; sys.modules['sklearn'] = None; import smm_py; import smm_py.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: smm_py.sklearn needs scikit-learn: pip install" in done.stderr


def test_the_example(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from examples import clustering

    monkeypatch.setattr(sys, "argv", ["clustering", "--out", str(tmp_path / "picture.png")])
    clustering.main()
    assert "BIC chooses 4" in capsys.readouterr().out
    assert (tmp_path / "picture.png").stat().st_size > 10_000
