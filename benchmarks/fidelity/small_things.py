"""Measure what preserves small details (a crown, the third of three eyes) in a concept, changing one thing at a time.

    python -m benchmarks.fidelity.small_things [--minutes N]

Uses development characters, one of each kind, with the demo's settings. The upper bound, which no method can be expected to
exceed, are characters that the base model knows by name. Writes `results/small_things.md` and a sheet of images beside it; all
scores are kept in a JSON file there, and nothing is measured twice.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.fidelity import plots, sheet
from benchmarks.fidelity.ablations import Change
from benchmarks.fidelity.bench import named
from benchmarks.fidelity.characters import TAUGHT_ON
from benchmarks.fidelity.concepts import Concept, which
from benchmarks.fidelity.demo_quality import taught, workshop
from benchmarks.fidelity.levers import rates
from benchmarks.fidelity.methods import NO_MASK, Recipe, batch
from benchmarks.fidelity.trials import Store, Trial, Workshop
from benchmarks.lab import RESULTS
from benchmarks.world.judges import left
from demo.individuals import STYLES
from scripts.generate.make_workflows import ALONE, TRAINING
from scripts.harness.graphs import Graph
from scripts.setup import bootstrap

UNKNOWN: tuple[Concept, ...] = tuple((f"development-{i}", kind) for i, kind in enumerate(STYLES))
KNOWN: tuple[Concept, ...] = tuple(("base-0", kind) for kind in STYLES)
SHOWN = (0, 3)
"""Indices of the prompts whose first image is on the sheet."""
SHEET = "small_things.png"


@dataclass(frozen=True)
class Row:
    """A variant and its characters; if `change` is None, the base model generates them by name."""

    name: str
    change: Change | None
    concepts: tuple[Concept, ...] = UNKNOWN


ROWS = (
    Row("characters that the base model knows by name", None, KNOWN),
    Row("the demo's settings", Change()),
    *(Row(f"bias {bias:g} at inference", Change(values=(bias,))) for bias in (0.3, 0.5)),
    *(Row(f"temperature {t:g} at inference", Change(use={"settings": {"temperature": t}})) for t in (0.1, 0.2)),
    Row("only the word", Change({"edit_mode": "none", "word_rate": ALONE["word_rate"]})),
    Row("the paper's gates", Change({"train_bias": 0.75, "train_temperature": 0.1}, values=(0.6,))),
    Row("concepts of characters that the base model knows by name", Change(), KNOWN),
    Row("a fifth of the word's rate", Change(rates(0.2, 1))),
    Row("the gate fully open, in training and at inference", Change({"train_bias": 0.0}, values=(0.0,))),
    Row("keys trained too", Change({"lock": "trained"})),
    Row("three times the word's rate", Change(rates(3, 1))),
    Row("no masks", Change(recipe={"masks": NO_MASK})),
    Row("no min-SNR", Change({"min_snr": 0.0})),
    Row("twice the steps", Change({"steps": 2 * TRAINING["steps"]})),
    Row("half the outputs' rate", Change(rates(1, 0.5))),
)


def trial(row: Row, concept: Concept) -> Trial:
    """Return the trial of a row and a concept."""
    if row.change is None:
        return named(concept[1], which(concept)[1])
    one = taught(concept)
    recipe, use = row.change.of(one.recipe, one.use)
    return replace(one, recipe=recipe, use=use, values=row.change.values or one.values)


def measure(shop: Workshop, one: Trial) -> dict[str, float]:
    """Measure a trial unless it was measured before; return its scores, and keep the images for the sheet."""
    key = one.key(one.values[0])
    if not is_kept(shop.store, one):
        (drawn,) = shop.draw(one, one.values)
        alone = torch.cat([left(images) for images in drawn])
        known = shop.lab.judges.recognised(alone, one.concept[1], *which(one.concept))
        found = {"recognised": known.float().mean().item(), "details": shop.bed.details(one.concept, alone).mean().item()}
        found["text"] = float(shop.bed.judge(one, drawn).text.mean())
        shop.store.keep({key: {name: round(value, 3) for name, value in found.items()}})
        drawn_to(one).parent.mkdir(exist_ok=True)
        torch.save([drawn[i][0] for i in SHOWN], drawn_to(one))
    return shop.store.kept[key]


def is_kept(store: Store, one: Trial) -> bool:
    """Return whether a trial's scores and images are kept."""
    return one.key(one.values[0]) in store.kept and drawn_to(one).exists()


def drawn_to(one: Trial) -> Path:
    """Return the file in which images of a trial are kept for the sheet."""
    return bootstrap.CACHE / "small_things" / f"{one.key(one.values[0]).replace('/', '-')}.pt"


def shown(shop: Workshop, row: Row) -> list[Tensor]:
    """Return a row of the sheet: for each character one of its training pictures, and its images."""
    strips = []
    for concept in row.concepts:
        drawn = torch.load(drawn_to(trial(row, concept)), weights_only=True)
        strips.append(torch.cat([sheet.taught_from(shop, concept)[0], *drawn], 1))
    return strips


def decoded(shop: Workshop) -> list[str]:
    """Return the page's lines on what is left of the characters in their training pictures after the autoencoder."""
    found: dict[str, list[Tensor]] = {"as they are": [], "after encoding and decoding with the base model's VAE": []}
    for concept in UNKNOWN:
        graph, names = Graph(), shop.shown(concept, Recipe(pictures=len(TAUGHT_ON)))
        _, _, vae = graph.checkpoint(shop.bed.checkpoint)
        loaded = batch(graph, "image", [[graph.add("LoadImage", image=name), 0] for name in names])
        latents = graph.add("VAEEncode", pixels=loaded, vae=vae)
        both = shop.lab.pictures(graph, loaded, [graph.add("VAEDecode", samples=[latents, 0], vae=vae), 0])
        for each, pictures in zip(found.values(), both, strict=True):
            each.append(shop.bed.details(concept, pictures))
    shares = [f"{name} {100 * torch.cat(each).mean():.0f} %" for name, each in found.items()]
    return [f"For comparison, details in the characters' training pictures: {', '.join(shares)}.", ""]


def page(scores: dict[str, list[dict[str, float]]]) -> list[str]:
    """Return the page's lines with all scores."""
    rows = [
        f"| {name} | " + " | ".join(f"{100 * np.mean([each[part] for each in found]):.0f} %" for part in found[0]) + " |"
        for name, found in scores.items()
    ]
    return [
        "# What preserves a character's small details",
        "",
        "Written by `python -m benchmarks.fidelity.small_things`.",
        "",
        f"{len(UNKNOWN)} development characters, one of each kind (numbers 0 to 3; not those of levers.md), that the base model "
        f"never saw, and {len(KNOWN)} that it knows by name. *Recognised*: a classifier picks the right character out of 240 of "
        "its kind. *Details*: how many of its body, head, pattern, eyes and two colours are right. *Text*: the share of what the "
        "prompt asks for that appears.",
        "",
        "| | recognised | details | text |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        f"![For each row and character, a training picture and two generated images]({SHEET})",
        "",
    ]


def main() -> None:
    """Measure row by row, then write the page and the sheet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after so long, only rows that were measured before")
    options = parser.parse_args()
    store, until = Store(RESULTS / "small_things.json"), time.time() + 60 * options.minutes
    scores, pictures = {}, {}
    with workshop(store) as shop:
        for row in ROWS:
            trials = [trial(row, concept) for concept in row.concepts]
            if scores and time.time() > until and not all(is_kept(store, each) for each in trials):
                continue
            scores[row.name] = [measure(shop, each) for each in trials]
            pictures[row.name.replace(", ", ",\n")] = shown(shop, row)
            print(row.name, scores[row.name], flush=True)
        plots.sheet(pictures, list(STYLES), RESULTS / SHEET)
        lines = [*page(scores), *decoded(shop)]
    (RESULTS / "small_things.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
