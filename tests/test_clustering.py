"""The vanilla layers against scikit-learn, and variances far from zero."""

import warnings

import numpy as np
import pytest

import smm_py


def clusters(offset=0.0, spread=0.3, dtype="float64", count=90):
    rng = np.random.default_rng(0)
    centres = np.array([[-2.0, 0, 1], [0, 2, 0], [2, 0, -1]])
    return (
        offset + centres[np.arange(count) % 3] + spread * rng.standard_normal((count, 3))
    ).astype(dtype)


def test_one_step_is_scikit_learns():
    """E step, M step and log-likelihood of sklearn.mixture.GaussianMixture."""
    mixture = pytest.importorskip("sklearn.mixture")
    x = clusters()
    mean, variance = x[:3].copy(), np.full((3, 3), 0.5)
    theirs = mixture.GaussianMixture(
        3,
        covariance_type="diag",
        max_iter=1,
        reg_covar=1e-4,
        means_init=mean,
        precisions_init=1 / variance,
        weights_init=np.full(3, 1 / 3),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one step does not converge
        theirs.fit(x)
    module = smm_py.GaussianMixture(dim=3, num_slots=3, num_iters=1, var_floor=1e-4)
    out = module(x, init={"mean": mean, "log_std": 0.5 * np.log(variance)})
    assert np.allclose(out.mean, theirs.means_, rtol=1e-10)
    assert np.allclose(out.variance, theirs.covariances_, rtol=1e-8)
    assert np.allclose(out.prior, theirs.weights_, rtol=1e-10)
    again = module(x, init={"mean": out.mean, "log_std": 0.5 * np.log(out.variance)})
    uniform = mixture.GaussianMixture(3, covariance_type="diag")
    uniform.weights_, uniform.means_, uniform.covariances_ = (
        np.full(3, 1 / 3),
        out.mean,
        out.variance,
    )
    uniform.precisions_cholesky_ = 1 / np.sqrt(out.variance)
    assert np.allclose(again.log_likelihood, uniform.score_samples(x).sum(), rtol=1e-10)


def test_a_sharp_k_means_is_lloyds():
    cluster = pytest.importorskip("sklearn.cluster")
    x = clusters()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = cluster.KMeans(3, init=x[:3], n_init=1, max_iter=100).fit(x)
    out = smm_py.KMeans(dim=3, num_slots=3, num_iters=30, scale=1e4, dtype="float64")(
        x, init={"slots": x[:3].copy()}, attention=True
    )
    assert np.allclose(out.slots, theirs.cluster_centers_, atol=1e-6)
    assert np.array_equal(out.attention.argmax(1), theirs.labels_)


def test_log_likelihood_never_falls():
    x = clusters(spread=1.0)
    module = smm_py.GaussianMixture(dim=3, num_slots=3, dtype="float64", eps=1e-300)
    values = [module(x, num_iters=t, seed=1).log_likelihood for t in range(1, 15)]
    # the floor added to every variance moves it a little from the optimum
    assert np.all(np.diff(values) > -1e-3) and values[-1] > values[0]


@pytest.mark.parametrize("offset, spread", [(100.0, 1e-3), (-1e4, 10.0), (0.0, 1e3), (1e3, 1e-1)])
@pytest.mark.parametrize("slots", [1, 3])
def test_variance_far_from_zero(offset, spread, slots):
    """float32 keeps the variance of data at an offset, against a two-pass sum in float32."""
    x = clusters(offset, spread, "float32", 3000)
    x -= np.float32(0)
    init = {
        "mean": x[:slots][None].copy(),
        "log_std": np.full((1, slots, 3), np.log(spread + 1), "float32"),
    }
    exact_init = {k: v.astype(float) for k, v in init.items()}
    out = smm_py.GaussianMixture(dim=3, num_slots=slots, num_iters=4)(x[None], init=init)
    exact = smm_py.GaussianMixture(dim=3, num_slots=slots, num_iters=4, dtype="float64")(
        x[None].astype(float), init=exact_init
    )
    if slots == 1:  # the truth does not depend on any responsibility
        assert np.allclose(exact.variance[0, 0], x.astype(float).var(0), rtol=1e-6)
        assert np.allclose(out.variance, exact.variance, rtol=2e-5)
    assert np.allclose(out.variance, exact.variance, rtol=2e-2)  # float32 responsibilities


@pytest.mark.parametrize("offset, spread", [(100.0, 1e-3), (1e3, 1e-1)])
def test_means_of_many_inputs_far_from_zero(offset, spread):
    """Sums over 100,000 inputs at an offset: K-Means keeps their means as the mixture does."""
    x = (offset + spread * clusters(count=100_000)).astype("float32")
    for name, init in (
        ("KMeans", {"slots": x[:3].copy()}),
        ("GaussianMixture", {"mean": x[:3].copy(), "log_std": np.zeros((3, 3), "float32")}),
    ):
        found, exact = (
            getattr(smm_py, name)(dim=3, num_slots=3, num_iters=1, dtype=dtype)(
                x.astype(dtype), init={k: v.astype(dtype) for k, v in init.items()}
            ).slots[:, :3]
            for dtype in ("float32", "float64")
        )
        assert np.abs(found - exact).max() < 0.01 * spread + 2 * np.spacing(np.float32(offset)), (
            name
        )


def test_logits_that_all_overflow_are_told():
    """Nothing is left to choose by; a uniform choice would look right."""
    x = np.float32([[0], [1], [5], [6]])
    sharp = smm_py.KMeans(dim=1, num_slots=2, num_iters=5, scale=1e30)(
        x, init={"slots": np.float32([[0.5], [5.5]])}
    )
    assert np.allclose(sharp.slots[:, 0], [0.5, 5.5], atol=1e-6)
    for scale, factor in ((1e38, 1), (1.0, 1e19)):
        with pytest.raises(ValueError, match="hold numbers too large for float32"):
            smm_py.KMeans(dim=1, num_slots=2, num_iters=5, scale=scale)(
                np.float32(factor) * x,
                init={"slots": np.float32(factor) * np.float32([[0.6], [5.6]])},
            )


def test_outputs_beside_the_slots_are_finite_too():
    """Of an inactive slot, the released form returns the initial log standard deviation."""
    x, mean, log_std = (
        np.zeros((1, 3, 4), "float32"),
        np.zeros((1, 2, 4), "float32"),
        np.float32([[[0] * 4, [60] * 4]]),
    )
    module = smm_py.SlotMixture(dim=4, num_slots=2, num_iters=1, variant="reference")
    with pytest.raises(ValueError, match="variance of the output is not finite"):
        module(x, init={"mean": mean, "log_std": log_std}, slot_mask=np.array([[True, False]]))


def test_one_outlier():
    x = clusters(dtype="float32", count=300)
    x[7] = 1e4
    module = smm_py.GaussianMixture(dim=3, num_slots=3, num_iters=10, gradient="full")
    out = module(x, init={"mean": x[:3].copy(), "log_std": np.zeros((3, 3), "float32")})
    grads = module.backward(out, np.ones_like(out.slots))
    assert np.isfinite(out.slots).all() and np.isfinite(grads["x"]).all()


def test_a_slot_without_any_input_recovers_the_mean_of_all():
    """Responsibilities of exactly 0: eps alone weights the inputs, prior 0, no NaN gradient."""
    x = clusters(dtype="float32")
    mean = np.array([[[0, 0, 0], [1e3, 1e3, 1e3]]], "float32")
    module = smm_py.GaussianMixture(dim=3, num_slots=2, num_iters=3, eps=1e-8)
    out = module(
        x[None], init={"mean": mean, "log_std": np.zeros((1, 2, 3), "float32")}, attention=True
    )
    assert (out.attention[0, :, 1] == 0).all() and out.prior[0, 1] == 0
    assert np.allclose(out.mean[0, 1], x.mean(0), atol=1e-4)
    assert all(np.isfinite(g).all() for g in module.backward(out, np.ones_like(out.slots)).values())


def test_plain_em_has_no_eps_and_no_unit():
    """x, x / 100 and 10,000 x give the same clusters; as many slots as points are the points."""
    x = clusters()
    module = smm_py.GaussianMixture(dim=3, num_slots=3, num_iters=30)
    once = module(x, seed=0)
    for unit in (1e-2, 1e4, 1e-6):
        other = module(x * unit, seed=0)
        assert np.allclose(other.mean / unit, once.mean, rtol=1e-6, atol=1e-9)
        assert np.allclose(other.variance / unit**2, once.variance, rtol=1e-6)
        assert np.allclose(other.prior, once.prior, rtol=1e-6)
    pair = smm_py.GaussianMixture(dim=1, num_slots=2)([[9999.0], [0.0]], seed=0)
    assert sorted(pair.mean.ravel()) == [0, 9999] and pair.variance.max() < 1e-4
    points = np.random.default_rng(0).standard_normal((7, 2))
    start = {"indices": np.arange(7), "log_std": np.full((7, 2), -4.0)}
    own = smm_py.GaussianMixture(dim=2, num_slots=7)(points, init=start)
    assert own.variance.max() < 1e-11
    assert np.allclose(np.sort(own.mean, 0), np.sort(points, 0), atol=1e-12)
    centres = smm_py.KMeans(dim=1, num_slots=2, scale=50.0)([[9999.0], [0.0]], seed=0)
    assert sorted(centres.slots.ravel()) == [0, 9999]


def test_an_empty_slot_keeps_its_state():
    """Without eps, a slot that no input is assigned to stays; its gradient passes through."""
    x = clusters()
    far = {"mean": np.array([[0.0, 0, 0], [1e3, 1e3, 1e3]]), "log_std": np.full((2, 3), -0.5)}
    for kind, init in ((smm_py.GaussianMixture, far), (smm_py.KMeans, {"slots": far["mean"]})):
        options = {} if kind is smm_py.GaussianMixture else {"scale": 1.0}
        module = kind(dim=3, num_slots=2, num_iters=4, **options)
        out = module(x, init=init)
        assert np.allclose(out.slots[1, :3], 1e3) and np.allclose(out.slots[0, :3], x.mean(0))
        grads = module.backward(out, np.ones_like(out.slots))
        assert (grads[module._spec.state_names[0]] == [[0, 0, 0], [1, 1, 1]]).all()
        assert np.allclose(grads["x"].sum(0)[:3], 1, atol=0.2)
    out = smm_py.GaussianMixture(dim=3, num_slots=2, num_iters=4)(x, init=far)
    assert np.allclose(out.variance[1], np.exp(-1)) and out.prior[1] == 0


def test_dtypes_of_clustering():
    """float32 data stay float32; other real numbers, and lists, are taken as float64."""
    x = clusters()
    for kind in (smm_py.KMeans, smm_py.GaussianMixture):
        module = kind(dim=3, num_slots=2)
        assert module.dtype is None
        assert module(x.astype("float32"), seed=0).slots.dtype == np.float32
        whole = (x * 100).round()
        wanted = module(whole, seed=0)
        for same in (whole.astype(int), whole.astype("float16"), whole.tolist()):
            out = module(same, seed=0)
            assert out.slots.dtype == np.float64
            if not hasattr(same, "dtype") or same.dtype != np.float16:
                assert np.array_equal(out.slots, wanted.slots)
        assert module.backward(wanted, np.ones_like(wanted.slots))["x"].dtype == np.float64


def test_float64_reaches_far():
    """Two clusters at distances whose squares float32 does not have."""
    rng = np.random.default_rng(0)
    points = 0.1 * rng.standard_normal((20, 2)) + np.repeat([[0.0], [5.0]], 10, 0)
    expected = np.stack([points[:10].mean(0), points[10:].mean(0)])
    for size in (1.0, 1e30, 1e100):
        x = points * size
        slots = smm_py.KMeans(
            dim=2, num_slots=2, num_iters=3, dtype="float64", scale=50.0, eps=1e-30
        )(x, init={"slots": x[[0, 19]]}).slots
        assert np.allclose(slots / size, expected, rtol=1e-7)


def test_gradients_of_many_inputs_of_few_channels():
    """Forward keeps nothing of these, as its rows are padded, and backward does."""
    rng = np.random.default_rng(0)
    x, init = (
        rng.standard_normal((1, 310_000, 5), "float32"),
        {"slots": rng.standard_normal((1, 3, 5), "float32")},
    )
    grads = []
    for recompute in (False, True):
        module = smm_py.KMeans(dim=5, num_slots=3, num_iters=2, recompute=recompute)
        out = module(x, init=init)
        grads.append(module.backward(out, np.ones_like(out.slots))["x"])
    np.testing.assert_allclose(grads[0], grads[1], rtol=0, atol=1e-5 * np.abs(grads[1]).max())
