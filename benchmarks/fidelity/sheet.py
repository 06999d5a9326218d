"""A contact sheet: images of concepts by each method, at the best value of its dial, from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.fidelity import plots
from benchmarks.fidelity.concepts import Concept
from benchmarks.fidelity.fronts import Curve
from benchmarks.fidelity.methods import Recipe
from benchmarks.fidelity.trials import Trial, Workshop
from benchmarks.lab import read

SHOWN = 2
"""Number of images in each cell; a wide one counts as two."""
EVERY = 2
"""One in EVERY concepts has a row."""
FILE = "fidelity-sheet.png"

Rows = Mapping[str, Sequence[torch.Tensor]]
Shown = Sequence[tuple[str, list[Trial], Curve]]
"""For each method its name, its trials in the order of concepts, and its curve."""


def run(shop: Workshop, shown: Shown, out: Path) -> bool:
    """Draw the sheet unless it is up to date; return False if time ran out."""
    each = [(name, trials[::EVERY], curve.values[curve.best()]) for name, trials, curve in shown]
    if not each:
        return True
    concepts = [trial.concept for trial in each[0][1]]
    titles = [f"{name}\n{value:g}" if trials[0].use.dial else name for name, trials, value in each]

    def rows() -> Rows:
        return {"\n".join(concept): row(shop, each, i) for i, concept in enumerate(concepts)}

    of = [trial.key(value) for _, trials, value in each for trial in trials]
    return draw(shop, "sheet", of, rows, ["training pictures", *titles], out / FILE)


def draw(shop: Workshop, name: str, of: list[str], rows: Callable[[], Rows], columns: Sequence[str], path: Path) -> bool:
    """Draw a sheet unless it is up to date; return False if time ran out.

    The store keeps under `name` the keys of what the sheet shows, `of`.
    """
    if shop.store.kept.get(name) == {"of": of} and path.exists():
        return True
    if not shop.in_time():
        return False
    plots.sheet(rows(), columns, path)
    shop.store.keep({name: {"of": of}})
    return True


def row(shop: Workshop, each: Sequence[tuple[str, list[Trial], float]], i: int) -> list[torch.Tensor]:
    """Return the row of concept i: its training pictures, then each method's images; each row shows another of the prompts."""
    pictures = [torch.cat(taught_from(shop, each[0][1][i].concept), dim=1)]
    for _, trials, value in each:
        asked = trials[i].prompts[i % len(trials[i].prompts)]
        ((drawn,),) = shop.draw(replace(trials[i], prompts=(asked,)), [value])
        pictures.append(torch.cat(list(drawn[: SHOWN // (1 + asked.wide)]), dim=1))
    return pictures


def taught_from(shop: Workshop, concept: Concept, count: int = SHOWN) -> list[torch.Tensor]:
    """Return `count` of a concept's training pictures."""
    folder = shop.lab.server.base / "input"
    return [read(folder / name) for name in shop.shown(concept, Recipe(pictures=count))]


def page(kept: Mapping[str, dict], out: Path) -> list[str]:
    """Return the page's lines with the sheet, if there is one."""
    if "sheet" not in kept or not (out / FILE).exists():
        return []
    return [
        "One row for every second concept: two of its training pictures, then two images from each method (one, if the prompt asks "
        "for two characters), all from the same noise and at the dial value with the best harmonic mean. Each row uses the next "
        "prompt in turn.",
        "",
        f"![Images of each concept by each method]({FILE})",
    ]
