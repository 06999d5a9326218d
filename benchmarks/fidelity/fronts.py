"""Curves of likeness against text over a dial, and 95 per cent intervals over concepts: Student's t, with the jackknife."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import t as student

from benchmarks.fidelity.trials import SCORES, Store, Trial


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

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean text and likeness at each value, [V] each."""
        return self.text.mean((1, 2, 3)), self.likeness.mean((1, 2, 3))

    def harmonic(self) -> np.ndarray:
        """Return the harmonic mean of the mean scores at each value, [V]."""
        text, likeness = self.means()
        return harmonic_mean(text, likeness)

    def best(self) -> int:
        """Return the index of the value with the best harmonic mean."""
        return int(self.harmonic().argmax())

    def harmonic_interval(self, i: int) -> tuple[float, float]:
        """Return the interval of the harmonic mean at the i-th value."""
        text, likeness = self.left_out[:, :, i].T
        mean, half = self.harmonic()[i], half_width(harmonic_mean(text, likeness))
        return float(max(mean - half, 0)), float(min(mean + half, 1))

    def harmonic_of_each(self) -> np.ndarray:
        """Return each concept's harmonic mean of its mean scores at the best value of the dial, [C]."""
        i = self.best()
        return harmonic_mean(self.text[i].mean((1, 2)), self.likeness[i].mean((1, 2)))

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
    def left_out(self) -> np.ndarray:
        """Mean text and likeness without each of the concepts in turn, [C, 2, V]; NaN for a single concept."""
        each = np.stack([self.text.mean((2, 3)), self.likeness.mean((2, 3))])
        count = each.shape[2]
        rest = (each.sum(2, keepdims=True) - each) / (count - 1 or np.nan)
        return rest.transpose(2, 0, 1)

    @cached_property
    def intervals(self) -> np.ndarray:
        """Lower and upper bounds of text and of likeness at each value, [2, V, 2]; NaN for a single concept."""
        means, half = np.stack(self.means()), half_width(self.left_out)
        return np.stack([means - half, means + half], -1).clip(0, 1)


def half_width(left_out: np.ndarray) -> np.ndarray:
    """Return half the width of a statistic's 95 per cent interval, from its values without each of C concepts in turn, [C, ...].

    The jackknife's standard error times the quantile of Student's t. For a mean, this is the ordinary interval of Student's t.
    """
    count = len(left_out)
    spread = ((left_out - left_out.mean(0)) ** 2).sum(0) * (count - 1) / count
    return student.ppf(0.975, count - 1) * np.sqrt(spread)


@dataclass(frozen=True)
class Lead:
    """How far one method is ahead of another one in a score, over C concepts.

    Attributes:
        mean: The mean difference.
        interval: Its 95 per cent interval from Student's t over concepts; NaN for a single concept.
        ahead: The number of concepts with a higher score.
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
    return lead_of(ours.likeness[i].mean((1, 2)) - theirs.likeness[j].mean((1, 2)))


def lead_of(differences: np.ndarray) -> Lead:
    """Return the lead that differences in a score amount to, one for each concept, [C]."""
    count, mean = len(differences), float(differences.mean())
    half = float(student.ppf(0.975, count - 1) * differences.std(ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    return Lead(mean, (mean - half, mean + half), int((differences > 0).sum()), count)


def ranged(mean: float, bounds: Sequence[float] | np.ndarray) -> str:
    """Return a score with its interval in brackets, if it has one."""
    low, high = bounds
    return f"{mean:.2f}" if np.isnan(low) else f"{mean:.2f} ({low:.2f}–{high:.2f})"


def cells(curve: Curve, i: int) -> str:
    """Return table cells: a value, and text and likeness there with their intervals."""
    (text, likeness), (t, d) = curve.means(), curve.intervals[:, i]
    return f"{curve.values[i]:g} | {ranged(text[i], t)} | {ranged(likeness[i], d)}"


def rows(curves: Mapping[str, Curve]) -> list[str]:
    """Return a table row for each method and value: text, likeness and their harmonic mean."""
    each = [(name, curve, i) for name, curve in curves.items() for i in range(len(curve.values))]
    return [f"| {name} | {cells(curve, i)} | {curve.harmonic()[i]:.2f} |" for name, curve, i in each]
