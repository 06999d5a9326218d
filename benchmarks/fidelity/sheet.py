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
ROWS = ((0, 0), (1, 3), (2, 4), (3, 5))
"""For each row the numbers of its concept and its prompt: one concept of each kind; the last prompt asks for two characters."""
FILE = "fidelity-sheet.jpg"

Rows = Mapping[str, Sequence[torch.Tensor]]
Shown = Sequence[tuple[str, list[Trial], Curve]]
"""For each method its name, its trials in the order of concepts, and its curve."""


def run(shop: Workshop, shown: Shown, out: Path) -> bool:
    """Draw the sheet unless it is up to date; return False if time ran out."""
    rows_of = ROWS[: len(shown[0][1])] if shown else ()
    each = [(name, [trials[i] for i, _ in rows_of], curve.values[curve.best()]) for name, trials, curve in shown]
    if not each:
        return True
    concepts = [trial.concept for trial in each[0][1]]
    titles = [f"{name}\n{value:g}" if trials[0].use.dial else name for name, trials, value in each]

    def rows() -> Rows:
        return {"\n".join(concept): row(shop, each, i, rows_of[i][1]) for i, concept in enumerate(concepts)}

    of = [f"{trial.key(value)}/{prompt}" for _, trials, value in each for trial, (_, prompt) in zip(trials, rows_of, strict=True)]
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


def row(shop: Workshop, each: Sequence[tuple[str, list[Trial], float]], i: int, prompt: int) -> list[torch.Tensor]:
    """Return the i-th row: its concept's training pictures, then each method's images of a prompt."""
    pictures = [torch.cat(taught_from(shop, each[0][1][i].concept), dim=1)]
    for _, trials, value in each:
        asked = trials[i].prompts[prompt % len(trials[i].prompts)]
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
        "One concept of each kind, each with another prompt: two of its training pictures, then two images from each method (one, "
        "if the prompt asks for two characters), all from the same noise and at the dial value with the best harmonic mean.",
        "",
        f"![Images of each concept by each method]({FILE})",
    ]
