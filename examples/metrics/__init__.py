"""Metrics of the examples, in NumPy; `inception` has the features of FID, in PyTorch."""

from __future__ import annotations

from math import inf, prod
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..data.properties import COORDINATE_SCALE, COORDINATES, GROUPS, REAL, WIDTH
from .frechet import feature_statistics, frechet_distance

__all__ = [
    "adjusted_rand_index",
    "average_precision",
    "feature_statistics",
    "frechet_distance",
    "mean_best_overlap",
    "mean_iou",
    "THRESHOLDS",
]

THRESHOLDS = (inf, 1, 0.5, 0.25, 0.125, 0.0625)


def average_precision(predictions, targets, thresholds=THRESHOLDS) -> dict[float, float]:
    """Average precision of predicted sets of objects, over all images together.

    Parameters
    ----------
    predictions : (B, K, 19): coordinates in [-1, 1], scores of properties, confidence last.
    targets : (B, M, 19): as `examples.data` gives them.
    thresholds : distances in CLEVR's units, three times those of the coordinates.

    Returns
    -------
    dict
        Threshold -> AP in [0, 1].

    Notes
    -----
    As in the evaluation of Slot Attention (Locatello et al. 2020). Predictions are taken by falling
    confidence (ties: in their order). One is right if all four properties (by argmax) are those of
    a real object of its image, the nearest such object is closer than the threshold, and no
    prediction before has claimed it. Recall is of all real objects; precision is interpolated by
    its maximum at any higher recall.
    """
    predictions, targets = _checked(predictions, "predictions"), _checked(targets, "targets")
    if len(predictions) != len(targets):
        count = f"{len(predictions)}, got {len(targets)}"
        raise ValueError(f"targets must be of as many images as predictions, {count}")
    distance = _distances(predictions, targets)
    nearest, closest = distance.argmin(2), distance.min(2)
    order = np.argsort(-predictions[:, :, REAL].ravel(), kind="stable")
    image = np.repeat(np.arange(len(predictions)), predictions.shape[1])[order]
    claim = image * targets.shape[1] + nearest.ravel()[order]
    objects = int((targets[:, :, REAL] > 0.5).sum())
    return {t: _area(_right(claim, closest.ravel()[order], t), objects) for t in thresholds}


def _checked(array, name):
    array = np.asarray(array)
    if array.ndim != 3 or array.shape[2] != WIDTH or not array.shape[1]:
        raise ValueError(f"{name} must have shape (B, objects, {WIDTH}), got {array.shape}")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must hold numbers, got {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array.astype(np.float64)


def _distances(predictions, targets):
    """(B, K, M) in CLEVR's units; infinite where properties differ or there is no object."""
    gap = predictions[:, :, None, COORDINATES] - targets[:, None, :, COORDINATES]
    distance = COORDINATE_SCALE * np.sqrt((gap**2).sum(-1))
    match = np.broadcast_to((targets[:, :, REAL] > 0.5)[:, None], distance.shape).copy()
    for columns in GROUPS.values():
        found, true = (part[:, :, columns].argmax(-1) for part in (predictions, targets))
        match &= found[:, :, None] == true[:, None]
    return np.where(match, distance, np.inf)


def _right(claim, closest, threshold):
    """Whether each prediction, in order, is near enough and the first to claim its object."""
    near = np.isfinite(closest) & (closest < threshold)
    right = np.zeros(len(claim), bool)
    _, first = np.unique(claim[near], return_index=True)
    right[np.flatnonzero(near)[first]] = True
    return right


def _area(right, objects):
    if not objects:
        return 0.0
    found = np.cumsum(right)
    precision = found / np.arange(1, len(right) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float(highest[right].sum() / objects)


def adjusted_rand_index(true, predicted, foreground=False) -> np.ndarray:
    """Adjusted Rand index (Hubert and Arabie 1985) of two labellings of each image.

    Parameters
    ----------
    true, predicted : (B, P) integers of at least 0.
    foreground : leave out pixels where `true` is 0.

    Returns
    -------
    (B,) float64; 1.0 where both labellings have one group each, or nothing is left to compare.
    """
    cells = _cells(*_pair(true, predicted), foreground)

    def pairs(count):
        return count * (count - 1) / 2

    together = cells.sums(pairs(cells.count))
    rows, columns = (pairs(cells.margin(axis)).sum(1) for axis in (cells.row, cells.column))
    total = pairs(cells.sums(cells.count))
    expected = np.divide(rows * columns, total, out=np.zeros_like(rows), where=total > 0)
    scale = (rows + columns) / 2 - expected
    return np.divide(together - expected, scale, out=np.ones_like(scale), where=scale != 0)


def _labels(array, name):
    array = np.asarray(array)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"{name} must have shape (B, P), got {array.shape}")
    if array.size and array.min() < 0:
        raise ValueError(f"{name} must be at least 0, got {array.min()}")
    return array


class _Cells(NamedTuple):
    """The cells that are not empty of the contingency table of each of `images`, in order."""

    images: int
    shape: tuple[int, int]  # groups of true, groups of predicted
    image: np.ndarray
    row: np.ndarray
    column: np.ndarray
    count: np.ndarray  # pixels, float64

    def sums(self, values):
        """(images,) sums of values that the cells have."""
        return np.bincount(self.image, values, self.images)

    def margin(self, axis):
        """(images, groups) pixels of each group: `axis` is `row` or `column`."""
        groups = self.shape[axis is self.column]
        sums = np.bincount(self.image * groups + axis, self.count, self.images * groups)
        return sums.reshape(-1, groups)

    def overlap(self):
        """The intersection over union of each cell's groups."""
        union = self.margin(self.row)[self.image, self.row]
        union = union + self.margin(self.column)[self.image, self.column] - self.count
        return self.count / union

    def tables(self, values):
        """A table of each image, in turn: values that the cells have, else 0."""
        at_once = max(1, 2**20 // prod(self.shape))
        for first in range(0, self.images, at_once):
            some = slice(*np.searchsorted(self.image, (first, first + at_once)))
            tables = np.zeros((min(at_once, self.images - first), *self.shape))
            tables[self.image[some] - first, self.row[some], self.column[some]] = values[some]
            yield from tables


def _cells(true, predicted, foreground=False):
    """Labels may be of any size: those whose table would be much larger than the image are ranked.

    What is left too large for a table (many groups on both sides) is sorted instead.
    """
    few, shape = 4 * true.shape[1] + 4096, _groups(true, predicted)
    if prod(shape) > few:
        true, predicted = _ranks(true), _ranks(predicted)
        shape = _groups(true, predicted)
    rows, columns = shape
    image = np.arange(len(true))[:, None]
    cell = image * (rows * columns) + true.astype(np.int64) * columns
    cell += predicted.astype(np.int64)
    cell = cell[true > 0] if foreground else cell.ravel()
    if prod(shape) > few:
        cell, count = np.unique(cell, return_counts=True)
    else:
        counts = np.bincount(cell)
        cell = np.flatnonzero(counts)
        count = counts[cell]
    row, column = np.divmod(cell, columns)
    image, row = np.divmod(row, rows)
    return _Cells(len(true), shape, image, row, column, count.astype(np.float64))


def _groups(*labellings):
    return tuple(int(labels.max(initial=0)) + 1 for labels in labellings)


def _ranks(labels):
    """Each image's labels as 1, 2, 3, ... in their order; 0 stays 0."""
    order = np.argsort(labels, axis=1, kind="stable")
    labels = np.take_along_axis(labels, order, 1)
    first = np.concatenate([labels[:, :1] != 0, labels[:, 1:] != labels[:, :-1]], axis=1)
    ranks = np.empty(labels.shape, np.int64)
    np.put_along_axis(ranks, order, first.cumsum(1), 1)
    return ranks


def mean_best_overlap(true, predicted) -> np.ndarray:
    """Mean over true objects (not 0) of the best intersection over union with any predicted group.

    true, predicted : (B, P) integers of at least 0. Returns (B,) float64; NaN where an image has no
    object.
    """
    cells = _cells(*_pair(true, predicted))
    best = np.zeros((cells.images, cells.shape[0]))
    np.maximum.at(best, (cells.image, cells.row), cells.overlap())
    return _mean_over_objects(cells, [one[1:].sum() for one in best])


def mean_iou(true, predicted) -> np.ndarray:
    """Mean intersection over union of true objects and predicted groups, matched one to one.

    true, predicted : (B, P) integers of at least 0. Returns (B,) float64; NaN where an image has no
    object.

    Notes
    -----
    The matching (Hungarian) has the largest sum. It is of the true objects, without the background
    0, and of all predicted groups, as a model does not say which of its groups is the background.
    The sum is divided by the number of true objects, so that one without a group counts as 0 and a
    group without an object costs nothing (`clevrtex_eval.py` of ClevrTex calls this denominator
    mIoU_gt, and has others).
    """

    cells = _cells(*_pair(true, predicted))
    totals = []
    for table in cells.tables(cells.overlap()):
        table = table[1:]
        totals.append(table[linear_sum_assignment(table, maximize=True)].sum())
    return _mean_over_objects(cells, totals)


def _mean_over_objects(cells, totals):
    """An image's total / its number of true objects; (images,), NaN without objects."""
    count = (cells.margin(cells.row)[:, 1:] > 0).sum(1)
    return np.divide(totals, count, out=np.full(len(count), np.nan), where=count > 0)


def _pair(true, predicted):
    true, predicted = _labels(true, "true"), _labels(predicted, "predicted")
    if true.shape != predicted.shape:
        raise ValueError(f"predicted must have true's shape {true.shape}, got {predicted.shape}")
    return true, predicted
