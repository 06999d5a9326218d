"""Curves of likeness against text over a dial, their fronts, and bootstrap intervals over concepts and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmarks.fidelity.trials import SCORES, Store, Trial

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)
"""Percentiles of the resampled means: a 95 per cent interval."""


@dataclass(frozen=True)
class Curve:
    """Scores of a method over its dial's V values, for C concepts, P prompts and S seeds."""

    values: tuple[float, ...]
    likeness: np.ndarray
    """[V, C, P, S]."""
    text: np.ndarray
    """[V, C, P, S]."""
    identity: np.ndarray
    """[V, C, P, S]."""

    @classmethod
    def of(cls, store: Store, trials: Sequence[Trial]) -> Curve | None:
        """Return the curve of one method over concepts, or None if scores are still missing."""
        found = [[store.get(trial, value) for trial in trials] for value in trials[0].values]
        if any(scores is None for row in found for scores in row):
            return None
        return cls(trials[0].values, *(np.array([[getattr(scores, name) for scores in row] for row in found]) for name in SCORES))

    def means(self, concepts: np.ndarray | None = None, seeds: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return mean text and likeness at each value, [V] each, over the given concepts and seeds (indices) or over all."""
        drawn = []
        for scores in (self.text, self.likeness):
            chosen = scores if concepts is None else scores[:, concepts]
            drawn.append((chosen if seeds is None else chosen[..., seeds]).mean((1, 2, 3)))
        return drawn[0], drawn[1]

    def harmonic(self) -> np.ndarray:
        """Return the harmonic mean of the mean scores at each value, [V]."""
        text, likeness = self.means()
        return 2 * text * likeness / np.maximum(text + likeness, 1e-9)

    def best(self) -> int:
        """Return the index of the value with the best harmonic mean."""
        return int(self.harmonic().argmax())

    def harmonic_interval(self, i: int) -> tuple[float, float]:
        """Return the interval of the harmonic mean at the i-th value."""
        text, likeness = self.resampled[:, 0, i], self.resampled[:, 1, i]
        return interval(2 * text * likeness / np.maximum(text + likeness, 1e-9))

    def at_best(self) -> str:
        """Return table cells: the value with the best harmonic mean, and text, likeness and harmonic mean there."""
        i, (text, likeness) = self.best(), self.means()
        return f"{self.values[i]:g} | {text[i]:.2f} | {likeness[i]:.2f} | {self.harmonic()[i]:.2f}"

    @cached_property
    def resampled(self) -> np.ndarray:
        """Mean text and likeness of each of R `resamples`, [R, 2, V]."""
        return np.array([self.means(*chosen) for chosen in resamples(self)])

    @cached_property
    def intervals(self) -> np.ndarray:
        """Lower and upper bounds of text and of likeness at each value, [2, V, 2]."""
        return np.array([[interval(column) for column in scores.T] for scores in self.resampled.transpose(1, 0, 2)])


def resamples(curve: Curve, count: int = RESAMPLES, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw concepts and seeds with replacement; the draws are the same for every method, so that differences are paired."""
    rng = np.random.default_rng(seed)
    _, concepts, _, seeds = curve.likeness.shape
    return [(rng.integers(concepts, size=concepts), rng.integers(seeds, size=seeds)) for _ in range(count)]


def interval(samples: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return the interval of resampled numbers, ignoring NaN; NaN bounds if there are no others."""
    known = np.asarray(samples, dtype=float)
    low, high = np.percentile(known[np.isfinite(known)], INTERVAL) if np.isfinite(known).any() else (np.nan, np.nan)
    return float(low), float(high)


def front(text: np.ndarray, likeness: np.ndarray, level: float) -> float:
    """Return the best likeness at a text score of `level` or more, on the points [V] and the lines between neighbours; else NaN."""
    reached = [float(d) for t, d in zip(text, likeness, strict=True) if t >= level]
    for i in range(len(text) - 1):
        low, high = sorted((i, i + 1), key=lambda j: text[j])
        if text[low] < level <= text[high]:
            share = (level - text[low]) / (text[high] - text[low])
            reached.append(float(likeness[low] + share * (likeness[high] - likeness[low])))
    return max(reached, default=float("nan"))


def lead(ours: Curve, theirs: Curve, level: float) -> tuple[float, tuple[float, float], float]:
    """Return the lead in likeness of `ours` at a text score of `level`, its interval, and the share of resamples with a lead.

    A method that does not reach the level in a resample counts as behind there, but that resample does not enter the interval.
    """
    whole = front(*ours.means(), level) - front(*theirs.means(), level)
    pairs = np.array([[front(*means, level) for means in both] for both in zip(ours.resampled, theirs.resampled, strict=True)])
    ahead = np.where(np.isnan(pairs[:, 1]), np.isfinite(pairs[:, 0]), pairs[:, 0] > pairs[:, 1])
    return whole, interval(pairs[:, 0] - pairs[:, 1]), float(ahead.mean())


def mean_lead(ours: Curve, theirs: Curve, levels: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return the mean lead over the text scores that both methods reach, and its interval."""

    def ahead(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
        each = np.array([front(*first, level) - front(*second, level) for level in levels])
        return float(each[np.isfinite(each)].mean()) if np.isfinite(each).any() else float("nan")

    drawn = [ahead(*both) for both in zip(ours.resampled, theirs.resampled, strict=True)]
    return ahead(ours.means(), theirs.means()), interval(drawn)


def cells(curve: Curve, i: int) -> str:
    """Return table cells: a value, and text and likeness there with their intervals."""
    (text, likeness), (t, d) = curve.means(), curve.intervals[:, i]
    return f"{curve.values[i]:g} | {text[i]:.2f} ({t[0]:.2f}–{t[1]:.2f}) | {likeness[i]:.2f} ({d[0]:.2f}–{d[1]:.2f})"


def rows(curves: Mapping[str, Curve]) -> list[str]:
    """Return a table row for each method and value: text, likeness and their harmonic mean."""
    each = [(name, curve, i) for name, curve in curves.items() for i in range(len(curve.values))]
    return [f"| {name} | {cells(curve, i)} | {curve.harmonic()[i]:.2f} |" for name, curve, i in each]
