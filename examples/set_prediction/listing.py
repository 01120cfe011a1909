"""From the predictions of all slots to a list of objects: each of them once."""

from __future__ import annotations

import numpy as np

from ..data.properties import COORDINATE_SCALE, COORDINATES, GROUPS, REAL


def without_repeats(found, apart):
    """Predictions (n, K, 19) in which slots that repeat a surer one's object are not present.

    They lie nearer to it than `apart`, in the scene's units.
    """
    found, places = found.copy(), found[..., COORDINATES] * COORDINATE_SCALE
    for presence, place in zip(found[..., REAL], places):
        repeats = np.ones(len(presence), bool)
        repeats[surest(place, presence, apart)] = False
        presence[repeats] = 0
    return found


def surest(places, sure, apart):
    """Of places (n, d): the numbers of those left where the surer of two nearer than `apart` stays.

    The surest comes first.
    """
    left, kept = np.argsort(-sure, kind="stable"), []
    while len(left):
        first, left = left[0], left[1:]
        kept.append(first)
        near = np.linalg.norm(places[left] - places[first], axis=-1) < apart
        left = left[~near]
    return np.array(kept, int)


def by_certainty(found):
    """Predictions whose last column is the probability that object and properties are right."""
    sure = [found[..., group].max(-1) for group in GROUPS.values()]
    return np.concatenate([found[..., :REAL], (found[..., REAL] * np.prod(sure, 0))[..., None]], -1)
