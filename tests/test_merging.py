"""Slots merged and dropped: moments, which slots, gradients, NumPy beside PyTorch."""

import numpy as np
import pytest

import smm_py

METHODS = ("distance", "likelihood", "overlap")


def mixture(dtype="float64", images=3, slots=9, width=4, seed=0):
    """Slots 1 and 4 of every image hold parts of what the first holds, and the last is empty."""
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal((images, slots, width)) + 9 * np.arange(slots)[:, None]
    variance = rng.uniform(0.5, 1.5, mean.shape)
    share = np.full((images, 40, slots), 0.01, dtype)
    share[:, np.arange(40), rng.integers(0, slots, 40)] += rng.uniform(0.5, 1, 40)
    for k in (1, 4):
        mean[:, k] = mean[:, 0] + 0.05 * rng.standard_normal((images, width))
        variance[:, k] = variance[:, 0]
        share[..., k] = 0.5 * share[..., 0]
    share[..., -1] = 0
    return mean.astype(dtype), variance.astype(dtype), share.sum(1), share


def test_a_group_has_the_moments_of_all_its_points():
    rng = np.random.default_rng(1)
    points = rng.standard_normal((120, 3)) * [1, 2, 0.5] + 4
    near, far = points[:90], points[90:] + 50
    owner = rng.integers(0, 3, 90)
    parts = [*(near[owner == k] for k in range(3)), far]
    mean, variance = (np.stack([f(p, 0) for p in parts])[None] for f in (np.mean, np.var))
    mass = np.array([[float(len(p)) for p in parts]])
    merged = smm_py.merge_slots(mean, variance, mass)
    first = int(mass[0, :3].argmax())
    assert merged.group.tolist() == [[first, first, first, 3]] and merged.count.tolist() == [2]
    for k, own in ((first, near), (3, far)):
        assert np.allclose(merged.mean[0, k], own.mean(0), rtol=1e-12)
        assert np.allclose(merged.variance[0, k], own.var(0), rtol=1e-12)
        assert merged.mass[0, k] == len(own)
    others = [k for k in range(3) if k != first]
    assert (merged.mass[0, others] == 0).all()
    assert np.array_equal(merged.mean[0, others], mean[0, others])
    assert np.array_equal(merged.variance[0, others], variance[0, others])


@pytest.mark.parametrize("by", METHODS)
def test_one_object_is_one_group_and_an_empty_slot_none(by):
    mean, variance, mass, attention = mixture()
    merged = smm_py.merge_slots(mean, variance, mass, attention, by=by)
    assert (merged.group[:, [0, 1, 4]] == 0).all() and (merged.group[:, -1] == -1).all()
    rest = [2, 3, 5, 6, 7]
    assert (merged.group[:, rest] == rest).all() and (merged.count == 6).all()


def test_what_is_compared():
    """Each measure of two slots, by hand."""
    mean, variance = np.array([[[0.0], [2.0]]]), np.array([[[1.0], [3.0]]])
    mass, share = np.array([[3.0, 1.0]]), np.array([[[0.6, 0.4], [0.8, 0.2]]])
    distance = 4 / (4 * (1 + 3)) + 0.5 * np.log(4 / (2 * np.sqrt(3)))
    both = 0.75 * 1 + 0.25 * 3 + 0.75 * 0.25 * 4
    lost = 0.5 * (np.log(both) - 0.25 * np.log(3))
    columns = share[0].T
    cosine = (
        columns[0] @ columns[1] / np.sqrt((columns[0] @ columns[0]) * (columns[1] @ columns[1]))
    )
    for by, value in zip(METHODS, (distance, lost, 1 - cosine)):
        for factor, count in ((1.001, 1), (0.999, 2)):
            merged = smm_py.merge_slots(
                mean, variance, mass, share, by=by, threshold=factor * value
            )
            assert merged.count.tolist() == [count], (by, factor)


def test_slots_join_the_one_that_stands_and_no_chain():
    """0 and 2 are alike 1 and not each other; the most massive one decides."""
    mean = np.array([[[0.0], [1.0], [2.0]]] * 3)
    mass = np.array([[3.0, 1.0, 2.0], [1.0, 3.0, 2.0], [3.0, 2.0, 1.0]])
    merged = smm_py.merge_slots(mean, np.ones_like(mean), mass, threshold=0.3)
    assert merged.group.tolist() == [[0, 0, 2], [1, 1, 1], [0, 0, 2]]


def test_least_mass():
    mean = np.arange(4.0)[None, :, None] * 10
    mass = np.array([[8.0, 1.0, 0.5, 0.5]])
    for least, left in ((0, 4), (0.05, 2), (0.1, 1)):
        merged = smm_py.merge_slots(mean, np.ones_like(mean), mass, least=least)
        assert merged.count.tolist() == [left]
        assert merged.group.tolist() == [[k if k < left else -1 for k in range(4)]]


def test_a_merged_mixture_is_a_state_to_go_on_from():
    x = np.random.default_rng(0).standard_normal((2, 40, 6))
    module = smm_py.GaussianMixture(dim=6, num_slots=5, num_iters=3)
    out = module(x, attention=True, seed=0)
    merged = smm_py.merge_slots(
        out.mean, out.variance, out.attention.sum(1), by="likelihood", threshold=0.5
    )
    active = merged.mass > 0
    assert (merged.count == active.sum(1)).all() and (merged.count < 5).all()
    init = {"mean": merged.mean, "log_std": np.log(merged.variance) / 2}
    again = module(x, init=init, slot_mask=active)
    assert (again.prior[~active] == 0).all() and np.allclose(again.prior.sum(1), 1)


@pytest.mark.parametrize("by", METHODS)
def test_numpy_and_pytorch_agree(by):
    torch = pytest.importorskip("torch")
    import smm_py.torch as twins

    arrays = mixture("float32", seed=2)
    found = twins.merge_slots(*map(torch.from_numpy, arrays), by=by, least=0.01)
    for name, value in smm_py.merge_slots(*arrays, by=by, least=0.01)._asdict().items():
        other = getattr(found, name).numpy()
        assert other.dtype == value.dtype and np.allclose(other, value, rtol=1e-6), name


def test_gradient_with_the_groups_held_fixed():
    torch = pytest.importorskip("torch")
    import smm_py.torch as twins

    mean, variance, mass, _ = (torch.from_numpy(a) for a in mixture(images=2, slots=6, width=2))
    mass = mass[:, :-1].clone()
    arrays = [a[:, :5].clone().requires_grad_() for a in (mean, variance, mass)]
    assert (twins.merge_slots(*arrays).count == 3).all()
    assert torch.autograd.gradcheck(lambda *a: twins.merge_slots(*a)[:3], arrays)


@pytest.mark.parametrize("name", ["smm_py", "smm_py.torch"])
def test_wrong_arguments(name):
    merge, make = smm_py.merge_slots, np.asarray
    if name == "smm_py.torch":
        torch = pytest.importorskip("torch")
        from smm_py.torch import merge_slots as merge

        make = torch.from_numpy
    mean, variance, mass, attention = map(make, mixture())
    nan = make(np.full(mass.shape, np.nan))
    wrong = {
        "mean must have shape": (mean[0], variance, mass),
        r"variance must have shape \(3, 9, 4\), got": (mean, variance[:, :2], mass),
        r"mass must have shape \(3, 9\), got": (mean, variance, mass[:2]),
        r"attention must have shape \(3, 40, 9\), got": (mean, variance, mass, attention[..., 1:]),
        "variance must be above 0": (mean, 0 * variance, mass),
        "mass must be at least 0": (mean, variance, -mass),
        "mass must be finite": (mean, variance, nan),
    }
    for message, arrays in wrong.items():
        with pytest.raises(ValueError, match=message):
            merge(*arrays)
    with pytest.raises(ValueError, match="by must be one of"):
        merge(mean, variance, mass, by="color")
    with pytest.raises(ValueError, match="attention must be given"):
        merge(mean, variance, mass, by="overlap")
    with pytest.raises(TypeError, match="mean must be"):
        merge("mean", variance, mass)
    assert merge(mean, 0 * variance, mass, attention, by="overlap").count.tolist() == [6, 6, 6]
