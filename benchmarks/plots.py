"""Plots and contact sheets of the fidelity benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.fronts import Curve, interval, resamples

mpl.use("Agg")
import matplotlib.pyplot as plt

DPI = 110
LABEL = 120
"""Pixels to the left of a contact sheet's rows."""


def pareto(curves: Mapping[str, Curve], title: str, path: Path) -> None:
    """Design over text, a line for each method along its dial, with intervals both ways."""
    figure, axes = plt.subplots(figsize=(7, 5))
    for name, curve in curves.items():
        text, design = curve.means()
        drawn = np.array([curve.means(*chosen) for chosen in resamples(curve)])
        spans = []
        for i, middle in enumerate((text, design)):
            ends = np.array([interval(drawn[:, i, v]) for v in range(len(middle))])
            spans.append(np.clip([middle - ends[:, 0], ends[:, 1] - middle], 0, None))
        axes.errorbar(text, design, yerr=spans[1], xerr=spans[0], marker="o", label=name, capsize=2, elinewidth=0.7, linewidth=1.8)
        for value, x, y in zip(curve.values, text, design, strict=True):
            axes.annotate(f"{value:g}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set(xlabel="text: word, background and other thing right", ylabel="design: probability of the concept's own", title=title)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, title: str, path: Path) -> None:
    """Numbers over numbers, a line for each name."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, (xs, ys) in series.items():
        axes.plot(xs, ys, marker="o", label=name)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def contact_sheet(rows: Mapping[str, Sequence[Tensor]], path: Path) -> None:
    """Pictures [64, 64, 3] in 0…1, a labelled row for each name."""
    width = max(len(pictures) for pictures in rows.values())
    page = Image.new("RGB", (LABEL + 66 * width, 66 * len(rows)), "white")
    pen = ImageDraw.Draw(page)
    for y, (name, pictures) in enumerate(rows.items()):
        pen.multiline_text((4, 66 * y + 20), name.replace(", ", ",\n"), "black", ImageFont.load_default(11))
        for x, picture in enumerate(pictures):
            tile = Image.fromarray((picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
            page.paste(tile, (LABEL + 66 * x, 66 * y + 1))
    page.save(path, optimize=True)
