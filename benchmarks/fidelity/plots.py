"""Plots of the fidelity benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from torch import Tensor

from benchmarks.fidelity.fronts import Curve

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

DPI = 110
LEAST = (0.94, 0.55)
"""The least text and likeness that the plot of the demo's world shows."""
COLOURS = [*plt.get_cmap("tab10").colors, *plt.get_cmap("Dark2").colors]
"""A colour for each line, of which there are more than matplotlib's own ten."""


def pareto(
    curves: Mapping[str, Curve], reach: Curve | None, title: str, path: Path, least: tuple[float, float] | None = None
) -> None:
    """Plot likeness over text, a line for each method along its dial, with intervals of both scores.

    Intervals and the dial's value are shown at the best point of each line. `reach`, of the characters that the base model knows,
    is a star with dashed lines. With `least`, only the corner from this text and likeness on is shown.
    """
    _, axes = plt.subplots(figsize=(9, 4.6))
    axes.set_prop_cycle(color=COLOURS)
    for name, curve in curves.items():
        text, likeness = curve.means()
        best = curve.best()
        if least and likeness[best] < least[1]:
            continue
        across, along = (
            np.clip([middle - ends[:, 0], ends[:, 1] - middle], 0, None)
            for middle, ends in zip((text, likeness), curve.intervals, strict=True)
        )
        (line,) = axes.plot(text, likeness, label=name, linewidth=1.8)
        axes.plot(text, likeness, ".", color=line.get_color())
        bars = {"yerr": along[:, [best]], "xerr": across[:, [best]], "color": line.get_color(), "capsize": 2, "elinewidth": 0.7}
        axes.errorbar(text[[best]], likeness[[best]], fmt="o", **bars)
        if len(curve.values) > 1:
            where = text[best], likeness[best]
            axes.annotate(f"{curve.values[best]:g}", where, textcoords="offset points", xytext=(4, 4), fontsize=7)
    if reach is not None:
        ((x,), (y,)) = reach.means()
        axes.plot(x, y, "k*", markersize=11, label="known to the base model by name")
        axes.axhline(y, color="black", linestyle="--", linewidth=0.7)
        axes.axvline(x, color="black", linestyle="--", linewidth=0.7)
    axes.set(xlabel="text: how much of the prompt is there", ylabel="likeness: how much of the concept is there", title=title)
    if least:
        axes.set(xlim=(least[0], 1.005), ylim=(least[1], 1.01))
    finish(axes, path, beside=True)


def sheet(rows: Mapping[str, Sequence[Tensor]], columns: Sequence[str], path: Path) -> None:
    """Draw images [h, w, 3] in 0…1 as a table: a labelled row for each name, a column for each of `columns`."""
    figure, axes = plt.subplots(len(rows), len(columns), figsize=(1.5 * len(columns) + 1, 1.05 * len(rows)), squeeze=False)
    for (name, pictures), line in zip(rows.items(), axes, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for picture, cell in zip(pictures, line, strict=True):
            cell.imshow(picture.numpy(), interpolation="nearest")
            cell.set(xticks=[], yticks=[])
    for name, cell in zip(columns, axes[0], strict=True):
        cell.set_title(name.replace(", ", ",\n"), fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=DPI, pil_kwargs={"quality": 85})
    plt.close(figure)


def over_steps(curves: Mapping[str, tuple[Sequence[int], Sequence[float], Sequence[float]]], path: Path) -> None:
    """Plot text (dashed) and likeness (solid) over training steps; `curves` maps a name to steps, texts and likenesses."""
    _, axes = plt.subplots(figsize=(7, 4))
    for name, (steps, text, likeness) in curves.items():
        (line,) = axes.plot(steps, likeness, marker="o", markersize=3, label=name)
        axes.plot(steps, text, linestyle="--", color=line.get_color())
    axes.set(xlabel="training steps", ylabel="likeness (solid), text (dashed)", ylim=(-0.02, 1.02))
    finish(axes, path)


def costs(found: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Plot a cost ratio over each of several variables, in panels side by side."""
    figure, axes = plt.subplots(1, len(found), figsize=(3 * len(found), 3), sharey=True)
    for (name, points), each in zip(found.items(), axes, strict=True):
        each.plot(*zip(*points, strict=True), marker="o")
        each.axhline(1, color="grey", linewidth=0.7)
        each.set(xlabel=name, xscale="log", xticks=[value for value, _ in points], xticklabels=[value for value, _ in points])
        each.minorticks_off()
    axes[0].set_ylabel("step time relative to the unmodified model")
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def finish(axes: Axes, path: Path, beside: bool = False) -> None:
    """Add grid and legend, inside or beside the axes, and write the plot."""
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, **({"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if beside else {}))
    axes.figure.tight_layout()
    axes.figure.savefig(path, dpi=DPI)
    plt.close(axes.figure)
