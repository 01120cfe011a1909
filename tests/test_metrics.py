"""Metrics on cases worked out by hand, and against scikit-learn."""

from math import inf

import numpy as np
import pytest

from examples import metrics
from examples.data.properties import encode

NEAR = {"3d_coords": [0, 0, 0.7], "size": "large", "material": "metal", "shape": "cube", "color": "red"}


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
    exact[0, 0] = 0.25 # 0.75 in CLEVR's units, without rounding
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
    # by confidence: right (image 1), wrong, wrong, right, right: precision 1, 2/4, 3/5 -> 1, 3/5, 3/5
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
    assert metrics.adjusted_rand_index(np.zeros((1, 5), int), np.arange(5)[None], foreground=True) == 1


def test_best_overlap_by_hand():
    true = np.array([[0, 0, 1, 1, 1, 1, 2, 2]])
    guess = np.array([[3, 1, 1, 1, 1, 0, 0, 0]])
    # object 1: 3 of 5 with group 1; object 2: 2 of 3 with group 0
    assert metrics.mean_best_overlap(true, guess) == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert np.isnan(metrics.mean_best_overlap(np.zeros((1, 4), int), np.zeros((1, 4), int)))


def test_errors():
    good = np.zeros((2, 3, 19))
    for call, error, match in (
        (lambda: metrics.average_precision(good[0], good), ValueError, r"predictions must have shape"),
        (lambda: metrics.average_precision(good, good[:1]), ValueError, "targets must be of as many images"),
        (lambda: metrics.average_precision(good * np.nan, good), ValueError, "predictions must be finite"),
        (lambda: metrics.adjusted_rand_index(np.zeros((2, 3)), np.zeros((2, 3), int)), TypeError, "true must hold integers"),
        (lambda: metrics.adjusted_rand_index(np.zeros((2, 3), int), np.zeros((2, 4), int)), ValueError, "predicted must have"),
        (lambda: metrics.mean_best_overlap(np.zeros((2, 3), int) - 1, np.zeros((2, 3), int)), ValueError, "at least 0, got -1"),
    ):
        with pytest.raises(error, match=match):
            call()
