"""Measure the demo's settings on characters that no setting was chosen on: likeness, fidelity to the prompt, pairs.

    python -m benchmarks.fidelity.demo_quality [--servers N] [--split development]

Trains characters with the settings of `workflows/train_a_concept.json` and generates images with those of `use_concepts.json`, and
pairs with those of `two_places.json` and `use_two_concepts.json`. The baselines are the superclass, and characters that the base
model knows by name, an upper bound that no concept can be expected to exceed. Writes `results/demo.md` and its scores, `demo.json`,
and measures nothing twice. With `--split development`, on which settings are chosen, it only prints.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.fidelity import characters, groups
from benchmarks.fidelity.bench import NAMED, NOTHING, named
from benchmarks.fidelity.concepts import DEVELOPMENT, MEASURED, Concept, which
from benchmarks.fidelity.methods import TAUGHT, Recipe, Use
from benchmarks.fidelity.trials import SEEDS, Store, Trial, Workshop
from benchmarks.lab import RESULTS, draw, open_labs, part
from benchmarks.world.judges import left, right
from demo.base import PACKED
from demo.individuals import NAMES
from demo.world import SIDE
from scripts.generate.make_workflows import SETTINGS, TOGETHER
from scripts.harness.graphs import Graph
from scripts.setup import bootstrap

RECIPE = Recipe(widgets=TAUGHT)
USE = Use("bias", settings={"temperature": SETTINGS["temperature"]})


def plain(concept: Concept) -> Trial:
    """Return the trial of the superclass in a concept's prompts."""
    return Trial(concept, None, NOTHING.use, NOTHING.values, characters.prompts(concept))


def taught(concept: Concept) -> Trial:
    """Return the trial of a concept with the demo's settings."""
    return Trial(concept, RECIPE, USE, (SETTINGS["bias"],), characters.prompts(concept))


def scores(store: Store, trials: list[Trial]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each trial the share of images in which the character is recognised, and the mean text score."""
    found = [store.get(trial, trial.values[0]) for trial in trials]
    return np.array([each.identity.mean() for each in found]), np.array([each.text.mean() for each in found])


def together(shop: Workshop, one: Concept, two: Concept, regions: bool) -> list[bool]:
    """Generate images with two concepts, as `two_places.json` does with `regions` and `use_two_concepts.json` without.

    Returns:
        For each image, whether both are recognised.
    """
    lab, graph, trials = shop.lab, Graph(), [taught(concept) for concept in (one, two)]
    chosen = SETTINGS if regions else TOGETHER
    key = "/".join(["regions" if regions else "pair", f"{chosen['bias']:g}", *(trial.name() for trial in trials)])
    if key not in shop.store.kept:
        files = [shop.taught(trial) for trial in trials]
        model, clip, vae = graph.checkpoint(shop.bed.checkpoint)
        places = [{"region": part(graph, i)} if regions else {} for i in range(2)]
        loaded = [graph.load(file.name, **chosen | place) for file, place in zip(files, places, strict=True)]
        model, clip = graph.apply(model, clip, graph.combine(*loaded))
        negative, words = graph.text(clip, ""), " and a ".join(f"<{file.stem}>" for file in files)
        prompts = [graph.text(clip, f"a photo of a {words} {place}") for place in groups.PLACES]
        links = [draw(graph, model, each, negative, vae, 9000 + i, SEEDS, SIDE, 2 * SIDE)[1] for i, each in enumerate(prompts)]
        drawn = torch.cat(lab.pictures(graph, *links))
        halves = zip((one, two), (left(drawn), right(drawn)), strict=True)
        known = [lab.judges.recognised(images, concept[1], *which(concept)) for concept, images in halves]
        shop.store.keep({key: {"both": torch.stack(known).all(0).tolist()}})
    return shop.store.kept[key]["both"]


def page(store: Store, concepts: tuple[Concept, ...], placed: list[bool], free: list[bool]) -> list[str]:
    """Return the page's lines: the table and a summary."""
    known = [named(kind, i) for kind in NAMES for i in range(NAMED)]
    (ours, text), (_, word), (line, said) = (
        scores(store, trials) for trials in ([*map(taught, concepts)], [*map(plain, concepts)], known)
    )
    rows = [
        f"| {' '.join(concept)} | {100 * a:.0f} % | {100 * b:.0f} % | {100 * c:.0f} % |"
        for concept, a, b, c in zip(concepts, ours, text, word, strict=True)
    ]
    return [
        f"{len(concepts)} characters, with {len(characters.prompts(concepts[0]))} prompts each (places, moods and companions that "
        f"do not appear in the training pictures) and {SEEDS} seeds. *Recognised*: a classifier picks the right character out of "
        "240 of its kind. *Text*: the share of what the prompt asks for, including the kind, that appears.",
        "",
        "| character | recognised | text | the superclass's text |",
        "| --- | --- | --- | --- |",
        *rows,
        f"| **mean** | {100 * ours.mean():.0f} % | {100 * text.mean():.0f} % | {100 * word.mean():.0f} % |",
        f"| {len(known)} characters that the base model knows by name | {100 * line.mean():.0f} % | {100 * said.mean():.0f} % | |",
        "",
        f"The concepts are recognised {ours.mean() / line.mean():.2f} times as often as characters that the base model knows by "
        f"name; their text score is {text.mean() / word.mean():.2f} times that of the superclass.",
        "",
        f"Two separately trained concepts in one image, in {len(groups.PLACES)} places: both are recognised in "
        f"{100 * np.mean(placed):.0f} % of {len(placed)} images with a region for each, and in {100 * np.mean(free):.0f} % without "
        f"regions at a bias of {TOGETHER['bias']:g}.",
    ]


@contextlib.contextmanager
def workshop(store: Store, servers: int = 1) -> Iterator[Workshop]:
    """Open a workshop in the demo's world; training runs are kept, and shared by all that use it with the same base."""
    setup, digest = bootstrap.locate(), store.belongs_to(PACKED)
    base = bootstrap.stocked_base(setup, bootstrap.CACHE / f"demo-{digest}")
    with open_labs(setup, base, servers) as labs:
        yield Workshop(labs, characters.CharacterBed(labs[0].judges), store)


def main() -> None:
    """Measure, print the page, and write it for the test split."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--servers", type=int, default=1, help="number of servers in parallel")
    parser.add_argument("--split", choices=("test", "development"), default="test")
    options = parser.parse_args()
    test = options.split == "test"
    concepts, store = (
        (MEASURED, Store(RESULTS / "demo.json")) if test else (DEVELOPMENT, Store(bootstrap.CACHE / "development.json"))
    )
    with workshop(store, options.servers) as shop:
        shop.run([*map(plain, concepts), *(named(kind, i) for kind in NAMES for i in range(NAMED)), *map(taught, concepts)])
        placed, free = (
            [found for each in paired(concepts) for found in together(shop, *each, regions)] for regions in (True, False)
        )
    lines = [
        "# The demo's settings",
        "",
        "Written by `python -m benchmarks.fidelity.demo_quality`.",
        "",
        *page(store, concepts, placed, free),
        "",
    ]
    print("\n".join(lines))
    if test:
        (RESULTS / "demo.md").write_text("\n".join(lines), encoding="utf-8")


def paired(concepts: tuple[Concept, ...]) -> list[tuple[Concept, Concept]]:
    """Pair each concept with one of another kind; one without a partner is left out."""
    found, rest = [], sorted(concepts, key=lambda concept: (which(concept)[1], concept[1]))
    while len(rest) > 1:
        first = rest.pop(0)
        second = next((each for each in rest if each[1] != first[1]), None)
        if second:
            rest.remove(second)
            found.append((first, second))
    return found


if __name__ == "__main__":
    main()
