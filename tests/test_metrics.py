"""Metrics on cases worked out by hand, and against scikit-learn."""

import tracemalloc
import warnings
from math import inf

import numpy as np
import pytest

from examples import metrics
from examples.data.properties import encode

NEAR = {
    "3d_coords": [0, 0, 0.7],
    "size": "large",
    "material": "metal",
    "shape": "cube",
    "color": "red",
}


def scene(*objects):
    return encode(list(objects))


def predicted(*rows):
    """(row of a target, shift along x in CLEVR's units, confidence) -> (K, 19)."""
    out = []
    for row, shift, confidence in rows:
        row = row.copy().astype(float)
        row[0] += shift / 3
        row[18] = confidence
        out.append(row)
    return np.stack(out)


RED = scene(NEAR)[0]
BLUE = scene({**NEAR, "color": "blue", "3d_coords": [2, 0, 0.7]})[0]
BOTH = scene(NEAR, {**NEAR, "color": "blue", "3d_coords": [2, 0, 0.7]})


def ap(predictions, targets, threshold=inf):
    return metrics.average_precision(predictions, targets, (threshold,))[threshold]


def test_all_found():
    assert ap([predicted((RED, 0, 0.9), (BLUE, 0, 0.8))], [BOTH], 0.0625) == 1


def test_distance_must_be_below_the_threshold():
    for shift, expected in ((0.4999, 1), (0.5001, 0)):
        assert ap([predicted((RED, shift, 1))], [scene(NEAR)], 0.5) == expected
    exact = predicted((RED, 0, 1))
    exact[0, 0] = 0.25  # 0.75 in CLEVR's units, without rounding
    assert ap([exact], [scene(NEAR)], 0.75) == 0 and ap([exact], [scene(NEAR)], 0.76) == 1


def test_wrong_property():
    # right at 0.9, wrong at 0.8: half of the objects, precision 1 up to there
    green = scene({**NEAR, "color": "green", "3d_coords": [2, 0, 0.7]})[0]
    assert ap([predicted((RED, 0, 0.9), (green, 0, 0.8))], [BOTH]) == 0.5
    # the wrong one first: right / taken is 1/2 at recall 1/2
    assert ap([predicted((RED, 0, 0.8), (green, 0, 0.9))], [BOTH]) == 0.25


def test_an_object_is_claimed_once():
    twice = predicted((RED, 0, 0.9), (RED, 0.1, 0.8), (BLUE, 0, 0.7))
    # right, wrong (claimed), right: precision 1 at recall 1/2, 2/3 at recall 1
    assert ap([twice], [BOTH]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # a duplicate is wrong even where another object of the same kind is free, as the nearest counts
    other = scene(NEAR, {**NEAR, "3d_coords": [2.5, 0, 0.7]})
    assert ap([predicted((RED, 0, 0.9), (RED, 0.1, 0.8))], [other]) == 0.5


def test_a_claim_needs_the_distance():
    """Too far is wrong, and leaves the object to a later prediction."""
    assert ap([predicted((RED, 0.6, 0.9), (RED, 0, 0.8))], [scene(NEAR)], 0.5) == 0.5


def test_precision_is_interpolated_over_all_images():
    # by confidence: right (image 1), wrong, wrong, right, right: precision 1, 2/4, 3/5 -> 1, 3/5,
    # 3/5
    first = predicted((RED, 0, 0.9), (RED, 9, 0.5), (BLUE, 0, 0.4))
    second = predicted((RED, 9, 0.8), (RED, 9, 0.7), (RED, 0, 0.6))
    found = ap([first, second], [BOTH, scene(NEAR)], 1)
    # order: 0.9 right, 0.8 wrong, 0.7 wrong, 0.6 right, 0.5 wrong, 0.4 right -> 1, 2/4, 3/6
    assert found == pytest.approx((1 + 0.5 + 0.5) / 3)


def test_missing_objects_and_padding():
    assert ap([predicted((RED, 0, 0.9))], [BOTH]) == 0.5
    empty = np.zeros((10, 19))
    assert ap([predicted((RED, 0, 0.9))], [empty]) == 0
    # a row of zeros is no object, though its argmaxes are the first of every property
    plain = np.zeros((1, 19))
    assert ap([plain], [scene(NEAR)]) == 0


def test_large_sets_are_quick_enough_to_use():
    rng = np.random.default_rng(0)
    values = metrics.average_precision(rng.random((500, 10, 19)), np.tile(BOTH, (500, 1, 1)))
    assert list(values) == list(metrics.THRESHOLDS) and np.all(np.diff(list(values.values())) <= 0)


@pytest.mark.parametrize("foreground", [False, True])
def test_ari_is_scikit_learns(foreground):
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    true, guess = rng.integers(0, 5, (40, 90)), rng.integers(0, 4, (40, 90))
    guess[:20] = np.where(rng.random((20, 90)) < 0.8, true[:20], guess[:20])
    true[3], guess[4], true[5], guess[5] = 1, 2, 1, 0
    true[6], guess[6] = np.arange(90), np.arange(90)
    ours = metrics.adjusted_rand_index(true, guess, foreground)
    for a, b, value in zip(true, guess, ours):
        keep = a > 0 if foreground else slice(None)
        assert abs(sklearn.adjusted_rand_score(a[keep], b[keep]) - value) < 1e-12


def test_ari_without_foreground():
    assert (
        metrics.adjusted_rand_index(np.zeros((1, 5), int), np.arange(5)[None], foreground=True) == 1
    )


def test_best_overlap_by_hand():
    true = np.array([[0, 0, 1, 1, 1, 1, 2, 2]])
    guess = np.array([[3, 1, 1, 1, 1, 0, 0, 0]])
    # object 1: 3 of 5 with group 1; object 2: 2 of 3 with group 0
    assert metrics.mean_best_overlap(true, guess) == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert np.isnan(metrics.mean_best_overlap(np.zeros((1, 4), int), np.zeros((1, 4), int)))


def test_matched_overlap_by_hand():
    true = np.array([[0, 0, 1, 1, 1, 1, 2, 2]])
    # object 1 overlaps group 1 by 2/4 and group 2 by 2/6, object 2 group 2 by 2/4; group 0 is the
    # background's
    guess = np.array([[0, 0, 1, 1, 2, 2, 2, 2]])
    assert metrics.mean_iou(true, guess) == pytest.approx((2 / 4 + 2 / 4) / 2)
    # object 1 overlaps both groups by 2/6, object 2 group 1 by 2/4
    guess = np.array([[0, 0, 0, 0, 1, 1, 1, 1]])
    assert metrics.mean_best_overlap(true, guess) == pytest.approx((2 / 6 + 2 / 4) / 2)
    assert metrics.mean_iou(true, guess) == pytest.approx((2 / 6 + 2 / 4) / 2)


def test_matching_is_one_to_one_and_the_best_in_sum():
    # one group over everything: mBO counts it for both objects, mIoU for one (the larger), the
    # other is 0
    true, guess = np.array([[1, 1, 1, 2]]), np.zeros((1, 4), int)
    assert metrics.mean_best_overlap(true, guess) == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert metrics.mean_iou(true, guess) == pytest.approx((3 / 4 + 0) / 2)
    # object 1 (9 pixels) takes 4 of group 0 and 5 of group 1; object 2 (5 pixels) is the rest of
    # group 1: greedy gives object 1 group 1 (5/14) and object 2 nothing; the best sum is 4/9 + 5/10
    true, guess = (
        np.repeat([[1, 1, 2]], [4, 5, 5], axis=1),
        np.repeat([[0, 1, 1]], [4, 5, 5], axis=1),
    )
    assert metrics.mean_iou(true, guess) == pytest.approx((4 / 9 + 5 / 10) / 2)
    # groups without an object cost nothing, objects that are not there neither; labels may have
    # gaps
    true, guess = np.array([[0, 0, 0, 5, 5, 9]]), np.array([[1, 2, 3, 0, 0, 4]])
    assert metrics.mean_iou(true, guess) == 1
    assert np.isnan(metrics.mean_iou(np.zeros((1, 4), int), np.zeros((1, 4), int)))
    both = metrics.mean_iou(np.array([[1, 2], [0, 0], [1, 1]]), np.array([[1, 2], [0, 0], [0, 1]]))
    assert both[0] == 1 and np.isnan(both[1]) and both[2] == 0.5


def gaussian(rng, size, rank=None):
    factor = rng.normal(size=(size, rank or size))
    return rng.normal(size=size), factor @ factor.T


def test_frechet_distance_of_gaussians_in_closed_form():
    rng = np.random.default_rng(0)
    # one dimension: (m1 - m2)^2 + (s1 - s2)^2
    assert abs(metrics.frechet_distance([1.0], [[4.0]], [-2.0], [[0.25]]) - (9 + 1.5**2)) < 1e-8
    # covariances with the same axes: the sum over axes, also where some have no width
    axes = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    widths1, widths2 = rng.uniform(0, 3, 50), rng.uniform(0, 3, 50)
    widths1[:10] = widths2[5:20] = 0
    mean1, mean2 = rng.normal(size=(2, 50))
    found = metrics.frechet_distance(
        mean1, axes * widths1**2 @ axes.T, mean2, axes * widths2**2 @ axes.T
    )
    assert abs(found - (((mean1 - mean2) ** 2).sum() + ((widths1 - widths2) ** 2).sum())) < 1e-8
    # the optimal map x -> A x, A symmetric: the distance between N(0, C) and N(0, A C A) is tr((A -
    # 1) C (A - 1))
    mean, cov = gaussian(rng, 30)
    push = gaussian(rng, 30)[1] / 30
    found = metrics.frechet_distance(mean, cov, mean, push @ cov @ push)
    assert abs(found - np.trace((push - np.eye(30)) @ cov @ (push - np.eye(30)))) < 1e-8
    # equal ones, of full and of low rank
    for rank in (None, 3):
        mean, cov = gaussian(rng, 30, rank)
        assert 0 <= metrics.frechet_distance(mean, cov, mean, cov) < 1e-8


def test_feature_statistics():
    features = np.random.default_rng(0).normal(size=(20, 7)).astype(np.float32)
    mean, cov = metrics.feature_statistics(features)
    wide = features.astype(np.float64)
    assert mean.dtype == cov.dtype == np.float64
    assert (
        np.abs(mean - wide.mean(0)).max() < 1e-14
        and np.abs(cov - np.cov(wide, rowvar=False)).max() < 1e-14
    )


def test_frechet_errors():
    mean, cov = np.zeros(2), np.eye(2)
    for call, error, match in (
        (
            lambda: metrics.frechet_distance(mean, cov, np.zeros(3), np.eye(3)),
            ValueError,
            r"mean2 must have mean1's shape \(2,\)",
        ),
        (
            lambda: metrics.frechet_distance(mean, np.eye(3), mean, cov),
            ValueError,
            r"cov1 must have shape \(2, 2\), got \(3, 3\)",
        ),
        (
            lambda: metrics.frechet_distance(mean, cov, mean, [[1, 2], [0, 1]]),
            ValueError,
            "cov2 must be symmetric",
        ),
        (
            lambda: metrics.frechet_distance(mean, cov, mean, -cov),
            ValueError,
            "cov2 must be positive semidefinite, got .* -1",
        ),
        (
            lambda: metrics.frechet_distance(mean * np.nan, cov, mean, cov),
            ValueError,
            "mean1 must be finite",
        ),
        (
            lambda: metrics.frechet_distance(mean, cov > 0, mean, cov),
            TypeError,
            "cov1 must hold numbers, got bool",
        ),
        (
            lambda: metrics.feature_statistics(np.zeros((1, 3))),
            ValueError,
            r"N at least 2, got \(1, 3\)",
        ),
        (
            lambda: metrics.feature_statistics(np.full((4, 3), np.inf)),
            ValueError,
            "features must be finite",
        ),
    ):
        with pytest.raises(error, match=match):
            call()


@pytest.fixture
def inception(tmp_path):
    """A stand-in with the interface of the Inception file: its features are means of blocks of the
    picture."""
    torch = pytest.importorskip("torch")

    class StandIn(torch.nn.Module):
        def __init__(self, features: int):
            super().__init__()
            self.features = features

        def forward(self, images, return_features: bool = False):
            assert return_features and images.dtype == torch.uint8
            return images.double().flatten(1)[:, : self.features]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch deprecates TorchScript
        for features in (2048, 192):
            torch.jit.save(torch.jit.script(StandIn(features)), str(tmp_path / f"{features}.pt"))
    (tmp_path / "text.pt").write_text("no network")
    return tmp_path


def test_inception_features(inception):
    from examples.metrics.inception import inception_features

    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
    features = inception_features(inception / "2048.pt", images, batch_size=3)
    assert features.dtype == np.float32 and np.array_equal(
        features, images.transpose(0, 3, 1, 2).reshape(7, -1)[:, :2048]
    )
    for name, pictures, error, match in (
        (
            "192.pt",
            images,
            ValueError,
            r"192.pt must give features of shape \(7, 2048\), got \(7, 192\): no FID",
        ),
        ("text.pt", images, ValueError, "text.pt is no TorchScript"),
        ("none.pt", images, FileNotFoundError, "none.pt is missing"),
        ("2048.pt", images / 255, TypeError, "images must hold uint8, got float64"),
        (
            "2048.pt",
            images[0],
            ValueError,
            r"images must have shape \(N, H, W, 3\), got \(32, 32, 3\)",
        ),
    ):
        with pytest.raises(error, match=match):
            inception_features(inception / name, pictures)


def test_errors():
    good = np.zeros((2, 3, 19))
    for call, error, match in (
        (
            lambda: metrics.average_precision(good[0], good),
            ValueError,
            r"predictions must have shape",
        ),
        (
            lambda: metrics.average_precision(good, good[:1]),
            ValueError,
            "targets must be of as many images",
        ),
        (
            lambda: metrics.average_precision(good * np.nan, good),
            ValueError,
            "predictions must be finite",
        ),
        (
            lambda: metrics.adjusted_rand_index(np.zeros((2, 3)), np.zeros((2, 3), int)),
            TypeError,
            "true must hold integers",
        ),
        (
            lambda: metrics.adjusted_rand_index(np.zeros((2, 3), int), np.zeros((2, 4), int)),
            ValueError,
            "predicted must have",
        ),
        (
            lambda: metrics.mean_iou(np.zeros((2, 3), int), np.zeros((2, 4), int)),
            ValueError,
            "predicted must have",
        ),
        (
            lambda: metrics.mean_best_overlap(np.zeros((2, 3), int) - 1, np.zeros((2, 3), int)),
            ValueError,
            "at least 0, got -1",
        ),
    ):
        with pytest.raises(error, match=match):
            call()


def test_labels_need_not_be_small():
    """Numbers of panoptic segments, of any integer type; the background is still 0."""
    true = np.array([[0, 0, 1, 1, 1, 1, 2, 2], [1, 1, 0, 2, 2, 2, 0, 1]])
    guess = np.array([[3, 1, 1, 1, 1, 0, 0, 0], [0, 0, 2, 2, 1, 1, 3, 0]])
    for names, others, dtype in (
        ([0, 16_777_215, 16_777_216], [5, 10**6, 10**7, 10**8], np.int64),
        ([0, 2**63, 2**64 - 1], [0, 2**62, 2**63 + 1, 2**64 - 1], np.uint64),
    ):
        names, others = np.array(names, dtype), np.array(others, dtype)
        for measure, options in (
            (metrics.adjusted_rand_index, {}),
            (metrics.adjusted_rand_index, {"foreground": True}),
            (metrics.mean_best_overlap, {}),
            (metrics.mean_iou, {}),
        ):
            found = measure(names[true], others[guess], **options)
            assert np.array_equal(found, measure(true, guess, **options))


@pytest.mark.parametrize("measure", ["adjusted_rand_index", "mean_best_overlap", "mean_iou"])
def test_large_labels_take_no_table(measure):
    """Bounded by what the pixels need, whatever their labels are."""
    rng = np.random.default_rng(0)
    names = np.sort(rng.choice(2**24, 40, replace=False))
    true, guess = rng.integers(0, 5, (3, 4096)), rng.integers(0, 8, (3, 4096))
    large = (names[true + 1], names[guess * 4])
    many = (np.arange(1, 901)[None], rng.permutation(900)[None] + 2**24)  # each pixel its own group
    tracemalloc.start()
    try:
        found = getattr(metrics, measure)(*large)
        assert getattr(metrics, measure)(*many) == 1
        assert tracemalloc.get_traced_memory()[1] < 64e6
    finally:
        tracemalloc.stop()
    assert np.allclose(found, getattr(metrics, measure)(true + 1, guess + 1), rtol=1e-14, atol=0)
