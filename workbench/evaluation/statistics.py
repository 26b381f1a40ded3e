"""How sure a score is, and whether one model is better than another.

Knows: bootstrap intervals, also over pictures with several questions, and paired comparison with its significance.
Does not know: what the numbers mean; a question earns anything from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import DataError

RESAMPLES = 2000
_CELLS = 4_000_000
"""Random numbers drawn at once, so that ten thousand questions do not take gigabytes."""


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds between which it lies with the given confidence; all from 0 to 1."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Comparison:
    """Second minus first on the same questions, with bounds, and how likely chance alone gives such a difference."""

    difference: float
    low: float
    high: float
    p: float
    better: int
    """Questions on which the second earned more."""
    worse: int

    def significant(self, level: float = 0.05) -> bool:
        """Whether chance alone would give as large a difference less often than `level`."""
        return self.p < level

    def __str__(self) -> str:
        told = "significant" if self.significant() else "not significant"
        bounds = f"{100 * self.difference:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{bounds}, p = {self.p:.3g} ({told}); {self.better} better, {self.worse} worse"


def interval(
    earned: Sequence[float], *, groups: Sequence[Hashable] | None = None, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """The mean with percentile bootstrap bounds; whole groups are drawn where questions share a picture.

    Raises DataError where there is nothing, or `groups` is not one for each question.
    """
    values = _checked(earned, "interval")
    low, high = _bounds(values, groups, confidence, seed)
    return Interval(float(values.mean()), low, high, len(values))


def compare(
    first: Sequence[float],
    second: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Two models on the same questions in the same order.

    The p is two-sided: McNemar's exact test where every question is right or wrong and stands alone, else a permutation
    test that turns the sign of each question's (or group's) difference. Raises DataError for unequal lengths.
    """
    ours, theirs = _checked(first, "compare"), _checked(second, "compare")
    if len(ours) != len(theirs):
        raise DataError("compare", found=f"{len(ours)} and {len(theirs)} questions", expected="the same questions")
    change = theirs - ours
    low, high = _bounds(change, groups, confidence, seed)
    better, worse = int((change > 0).sum()), int((change < 0).sum())
    if groups is None and set(np.unique(change)) <= {-1.0, 0.0, 1.0}:
        p = _mcnemar(better, worse)
    else:
        p = _permuted(_sums(change, groups)[0], seed)
    return Comparison(float(change.mean()), low, high, p, better, worse)


def holm(p: Sequence[float]) -> list[float]:
    """Each p as it stands among so many tests (Holm 1979): below 0.05 means that not one of all is due to chance.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    scaled = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return [float(value) for value in adjusted]


def _checked(earned: Sequence[float], where: str) -> np.ndarray:
    values = np.asarray(earned, dtype=float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise DataError(where, found="no questions, or one without a score", expected="a number for each question")
    return values


def _sums(values: np.ndarray, groups: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """What each group earned, and how many questions it has."""
    if groups is None:
        return values, np.ones(len(values))
    if len(groups) != len(values):
        raise DataError("groups", found=f"{len(groups)} for {len(values)} questions", expected="one for each")
    # By name, so that the same questions in another order are drawn alike and their interval is the same.
    places = {group: place for place, group in enumerate(sorted(set(groups), key=str))}
    numbers = np.array([places[group] for group in groups])
    return np.bincount(numbers, weights=values), np.bincount(numbers).astype(float)


def _bounds(values: np.ndarray, groups: Sequence[Hashable] | None, confidence: float, seed: int) -> tuple[float, float]:
    sums, counts = _sums(values, groups)
    rng = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    at_once = max(1, _CELLS // len(sums))
    for start in range(0, RESAMPLES, at_once):
        drawn = rng.integers(len(sums), size=(min(at_once, RESAMPLES - start), len(sums)))  # (resamples, groups)
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)


def _mcnemar(better: int, worse: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _permuted(change: np.ndarray, seed: int) -> float:
    """The share of sign changes whose sum is as far from 0, the one that was seen counted in."""
    moved = change[change != 0]
    if not len(moved):
        return 1.0
    rng = np.random.default_rng(seed)
    seen, far = abs(moved.sum()), 0
    at_once = max(1, _CELLS // len(moved))
    for start in range(0, RESAMPLES, at_once):
        signs = rng.choice([-1.0, 1.0], size=(min(at_once, RESAMPLES - start), len(moved)))
        far += int((np.abs(signs @ moved) >= seen - 1e-12).sum())
    return (far + 1) / (RESAMPLES + 1)
