"""Curves of likeness against text over a dial, their fronts, and bootstrap intervals over concepts and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import t as student

from benchmarks.fidelity.trials import SCORES, Store, Trial

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)
"""Percentiles of the resampled means: a 95 per cent interval."""


def harmonic_mean(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the harmonic mean of scores, arrays or single numbers; 0 if both are 0."""
    return 2 * one * other / np.maximum(one + other, 1e-9)


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
        return harmonic_mean(text, likeness)

    def best(self) -> int:
        """Return the index of the value with the best harmonic mean."""
        return int(self.harmonic().argmax())

    def harmonic_interval(self, i: int) -> tuple[float, float]:
        """Return the interval of the harmonic mean at the i-th value."""
        text, likeness = self.resampled[:, 0, i], self.resampled[:, 1, i]
        return interval(harmonic_mean(text, likeness))

    def both(self) -> np.ndarray:
        """Return the share of images in which the concept is recognised and all that the prompt asks for is there, [V, C, P]."""
        return ((self.identity > 0.5) & (self.text > 0.999)).mean(3)

    def at(self, values: Sequence[float]) -> Curve:
        """Return the part of the curve at these of its values."""
        kept = [i for i, value in enumerate(self.values) if value in values]
        return Curve(tuple(self.values[i] for i in kept), *(getattr(self, name)[kept] for name in SCORES))

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


@dataclass(frozen=True)
class Lead:
    """How far one method is ahead of another one in likeness, over C concepts.

    Attributes:
        mean: The mean difference.
        interval: Its 95 per cent interval from Student's t over concepts; NaN for a single concept.
        ahead: The number of concepts with a higher likeness.
        concepts: C.
    """

    mean: float
    interval: tuple[float, float]
    ahead: int
    concepts: int

    def __str__(self) -> str:
        """Return a table cell."""
        low, high = self.interval
        return f"{self.mean:+.2f} ({low:+.2f}…{high:+.2f}), {self.ahead} of {self.concepts}"


def chosen(curve: Curve, level: float) -> int | None:
    """Return the index of the value with the highest mean likeness among those with a mean text of `level` or more, if any."""
    text, likeness = curve.means()
    return None if (text < level).all() else int(np.where(text >= level, likeness, -np.inf).argmax())


def lead(ours: Curve, theirs: Curve, level: float) -> Lead | None:
    """Return the lead of `ours`, each method at its `chosen` value; None if one of them does not reach this text.

    The same value is used for all concepts, so that no concept chooses its own.
    """
    i, j = chosen(ours, level), chosen(theirs, level)
    if i is None or j is None:
        return None
    each = ours.likeness[i].mean((1, 2)) - theirs.likeness[j].mean((1, 2))
    count = len(each)
    half = float(student.ppf(0.975, count - 1) * each.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    mean = float(each.mean())
    return Lead(mean, (mean - half, mean + half), int((each > 0).sum()), count)


def cells(curve: Curve, i: int) -> str:
    """Return table cells: a value, and text and likeness there with their intervals."""
    (text, likeness), (t, d) = curve.means(), curve.intervals[:, i]
    return f"{curve.values[i]:g} | {text[i]:.2f} ({t[0]:.2f}–{t[1]:.2f}) | {likeness[i]:.2f} ({d[0]:.2f}–{d[1]:.2f})"


def rows(curves: Mapping[str, Curve]) -> list[str]:
    """Return a table row for each method and value: text, likeness and their harmonic mean."""
    each = [(name, curve, i) for name, curve in curves.items() for i in range(len(curve.values))]
    return [f"| {name} | {cells(curve, i)} | {curve.harmonic()[i]:.2f} |" for name, curve, i in each]
