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


def pareto(curves: Mapping[str, Curve], title: str, path: Path) -> None:
    """Plot likeness over text, a line for each method along its dial, with intervals of both scores."""
    _, axes = plt.subplots(figsize=(7, 5))
    for name, curve in curves.items():
        text, likeness = curve.means()
        across, along = (
            np.clip([middle - ends[:, 0], ends[:, 1] - middle], 0, None)
            for middle, ends in zip((text, likeness), curve.intervals, strict=True)
        )
        axes.errorbar(text, likeness, yerr=along, xerr=across, marker="o", label=name, capsize=2, elinewidth=0.7, linewidth=1.8)
        for value, x, y in zip(curve.values, text, likeness, strict=True):
            axes.annotate(f"{value:g}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set(xlabel="text: how much of the prompt is there", ylabel="likeness: how much of the concept is there", title=title)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    finish(axes, path)


def sheet(rows: Mapping[str, Sequence[Tensor]], columns: Sequence[str], path: Path) -> None:
    """Draw images [h, w, 3] in 0…1 as a table: a labelled row for each name, a column for each of `columns`."""
    figure, axes = plt.subplots(len(rows), len(columns), figsize=(1.5 * len(columns) + 1, 1.05 * len(rows)), squeeze=False)
    for (name, pictures), line in zip(rows.items(), axes, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for picture, cell in zip(pictures, line, strict=True):
            cell.imshow(picture.numpy(), interpolation="nearest")
            cell.set(xticks=[], yticks=[])
    for name, cell in zip(columns, axes[0], strict=True):
        cell.set_title(name, fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=DPI)
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


def finish(axes: Axes, path: Path) -> None:
    """Add grid and legend, and write the plot."""
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.figure.tight_layout()
    axes.figure.savefig(path, dpi=DPI)
    plt.close(axes.figure)
