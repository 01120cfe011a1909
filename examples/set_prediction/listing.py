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
        left = list(np.argsort(-presence, kind="stable"))
        while left:
            first, *rest = left
            near = np.linalg.norm(place[rest] - place[first], axis=-1) < apart
            presence[np.array(rest, int)[near]] = 0
            left = [k for k, repeats in zip(rest, near) if not repeats]
    return found


def by_certainty(found):
    """Predictions whose last column is the probability that object and properties are right."""
    sure = [found[..., group].max(-1) for group in GROUPS.values()]
    return np.concatenate([found[..., :REAL], (found[..., REAL] * np.prod(sure, 0))[..., None]], -1)
