"""Plots of the fidelity benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np

from benchmarks.fronts import Curve

mpl.use("Agg")
import matplotlib.pyplot as plt

DPI = 110


def pareto(curves: Mapping[str, Curve], title: str, path: Path) -> None:
    """Design over text, a line for each method along its dial, with intervals both ways."""
    figure, axes = plt.subplots(figsize=(7, 5))
    for name, curve in curves.items():
        text, design = curve.means()
        across, along = (
            np.clip([middle - ends[:, 0], ends[:, 1] - middle], 0, None)
            for middle, ends in zip((text, design), curve.intervals, strict=True)
        )
        axes.errorbar(text, design, yerr=along, xerr=across, marker="o", label=name, capsize=2, elinewidth=0.7, linewidth=1.8)
        for value, x, y in zip(curve.values, text, design, strict=True):
            axes.annotate(f"{value:g}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set(xlabel="text: word, background and other thing right", ylabel="design: probability of the concept's own", title=title)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
