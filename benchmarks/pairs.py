"""Two concepts that were taught apart in one picture, at the settings that they come with: is each recognised in its half?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import concepts, sheet
from benchmarks.ablations import SMALL
from benchmarks.concepts import TEST
from benchmarks.lab import SAMPLING, Lab, draw, half, percent
from benchmarks.methods import RARE, Recipe, Use
from benchmarks.oracles import LEFT, RIGHT
from benchmarks.trials import SEEDS, Trial, Workshop
from perfusion_core.concept import Concept
from perfusion_core.edit import EXACT, MODES
from scripts.graphs import Graph, Link

PLACES = ("on the beach", "in the snow", "on a purple background", "on a blue background")
PAIRS: tuple[tuple[concepts.Concept, concepts.Concept], ...] = tuple((a, TEST[(i + 3) % len(TEST)]) for i, a in enumerate(TEST))
WAYS = {
    "plain words, nothing taught": "",
    "exact (orthogonal)": "exact",
    "exact, with regions": "regions",
    "paper (orthogonal)": "paper",
    "approximate": "approximate",
    "exact, bias 0.8": "later",
    "exact, bias 0.8, with regions": "later regions",
    "exact, keys locked globally": "locked",
    "exact, keys locked globally, with regions": "locked regions",
}
"""Name -> edit mode, or for the exact one: "regions" for a half of the picture for each, "later" for a gate that opens later,
"locked" for Text Encode, Keys Locked.
"""
LORAS = {f"two LoRAs, strength {strength:g}": strength for strength in (0.75, 1.0, 1.25)}
"""Concepts taught as LoRAs, both loaded with this strength."""
LATER = 0.8
TWICE = ("exact (orthogonal)", "exact, with regions")
"""Ways that concepts are combined in that were shown small at times while they were taught, too."""


FILE = "fidelity-pairs.png"


@dataclass(frozen=True)
class Pair:
    """Two concepts and how they are combined."""

    left: concepts.Concept
    right: concepts.Concept
    recipe: Recipe
    way: str

    def key(self) -> str:
        """Of its scores."""
        how = hashlib.sha256(json.dumps([PLACES, SEEDS, SAMPLING]).encode()).hexdigest()[:8]
        way = LORAS.get(self.way) or WAYS[self.way] or "plain"
        return f"pair/{way}/{how}/{self.recipe.key(self.left, 0)}/{self.recipe.key(self.right, 0)}"


def run(shop: Workshop, recipe: Recipe, lora: Recipe | None, out: Path) -> bool:
    """Measure what is missing of all pairs, and draw their sheet; False if there was no time for it."""

    def measured(lab: Lab, pair: Pair) -> bool:
        if not shop.in_time():
            return False
        shop.store.keep({pair.key(): judged(lab, pair, pictures(shop, pair, PLACES, lab))})
        print(pair.key(), flush=True)
        return True

    every = [Pair(left, right, each, way) for each, ways in taught(recipe, lora) for left, right in PAIRS for way in ways]
    missing = [pair for pair in every if pair.key() not in shop.store.kept]
    return shop.side_by_side(measured, missing) and shown(shop, recipe, out)


def taught(recipe: Recipe, lora: Recipe | None) -> list[tuple[Recipe, Sequence[str]]]:
    """How concepts are taught, and the ways in which those are combined."""
    return [(recipe, tuple(WAYS)), (SMALL.of(recipe, Use())[0], TWICE), *([(lora, tuple(LORAS))] if lora else [])]


def shown(shop: Workshop, recipe: Recipe, out: Path) -> bool:
    """Draw the sheet: a row for each pair, a column for each way; places take turns. False if there was no time for it."""

    def rows() -> sheet.Rows:
        found = {}
        for i, (left, right) in enumerate(PAIRS):
            drawn = [pictures(shop, Pair(left, right, recipe, way), [PLACES[i % len(PLACES)]])[0] for way in WAYS]
            found[f"{left[1]}, {right[1]}"] = [torch.cat(list(each[: sheet.SHOWN]), dim=1) for each in drawn]
        return found

    return sheet.draw(shop, "pairs-sheet", [*(recipe.key(left, 0) for left, _ in PAIRS), *WAYS], rows, list(WAYS), out / FILE)


def pictures(shop: Workshop, pair: Pair, places: Sequence[str], lab: Lab | None = None) -> list[Tensor]:
    """Pictures [seeds, 64, 64, 3] of a pair in each of these places."""
    lab, graph = lab or shop.lab, Graph()
    model, clip, vae = graph.checkpoint(shop.bed.checkpoint)
    model, clip, names = ready(graph, shop, pair, lab, model, clip)
    negative = graph.text(clip, "")
    texts = [f"a photo of a {names[0]} and a {names[1]} {place}" for place in places]
    locked = "locked" in WAYS.get(pair.way, "")
    prompts = [[graph.add("PerfusionTextEncode", clip=clip, text=t), 0] if locked else graph.text(clip, t) for t in texts]
    seeds = [9000 + 100 * PLACES.index(place) for place in places]
    links = [draw(graph, model, prompt, negative, vae, seed, SEEDS)[1] for prompt, seed in zip(prompts, seeds, strict=True)]
    return lab.pictures(graph, *links)


def ready(graph: Graph, shop: Workshop, pair: Pair, lab: Lab, model: Link, clip: Link) -> tuple[Link, Link, list[str]]:
    """A MODEL and a CLIP that know both concepts, and what prompts call them."""
    words = [word for _, word in (pair.left, pair.right)]
    if WAYS.get(pair.way) == "":
        return model, clip, words
    files = [shop.taught(Trial(concept, pair.recipe, Use(), (), ()), lab) for concept in (pair.left, pair.right)]
    if pair.way in LORAS:
        for file in files:
            model = [graph.add("LoraLoaderModelOnly", model=model, lora_name=file.name, strength_model=LORAS[pair.way]), 0]
        return model, clip, [f"{RARE} {word}" for word in words]
    way = WAYS[pair.way]
    loaded = [graph.load(file.name, **settings(graph, shop, file, 32 * i, way)) for i, file in enumerate(files)]
    stack = graph.add("PerfusionCombineConcepts", **{f"concepts__concept{i}": link for i, link in enumerate(loaded)})
    return *graph.apply(model, clip, [stack, 0], way if way in MODES else EXACT), [f"<{file.stem}>" for file in files]


def settings(graph: Graph, shop: Workshop, file: Path, x: int, way: str) -> dict[str, object]:
    """What a concept is given in this way beside what it comes with: a half of the picture, another bias, or nothing."""
    if way in MODES:
        return {}
    concept = Concept.load(shop.lab.server.base / "models" / "perfusion" / file)
    given = {"bias": LATER if "later" in way else concept.bias, "temperature": concept.temperature}
    return given | ({"region": half(graph, x)} if "regions" in way else {})


def judged(lab: Lab, pair: Pair, drawn: list[Tensor]) -> dict[str, list]:
    """Whether word, design and background are recognised: [places, seeds] each, of both sides."""
    found: dict[str, list] = {"words": [], "designs": [], "places": []}
    judges = lab.judges
    for place, images in zip(PLACES, drawn, strict=True):
        sides = [(pair.left, LEFT), (pair.right, RIGHT)]
        words = [[said == word for said in judges.words(images, box).best()] for (_, word), box in sides]
        designs = [[said == who for said in judges.designs(images, word, box).best()] for (who, word), box in sides]
        found["words"].append(torch.tensor(words).T.int().tolist())
        found["designs"].append(torch.tensor(designs).T.int().tolist())
        found["places"].append([int(said == place) for said in judges.backgrounds(images).best()])
    return found


def page(kept: Mapping[str, dict], recipe: Recipe, lora: Recipe | None, out: Path) -> list[str]:
    """The table, of those ways that all pairs were measured with."""
    lines = []
    for taught_by, way in [(each, way) for each, ways in taught(recipe, lora) for way in ways]:
        each = [kept.get(Pair(left, right, taught_by, way).key()) for left, right in PAIRS]
        if any(scores is None for scores in each):
            continue
        words, designs = (torch.tensor([scores[name] for scores in each if scores]).bool() for name in ("words", "designs"))
        places = torch.tensor([scores["places"] for scores in each if scores]).bool()
        plain = WAYS.get(way) == ""
        columns = [
            "" if plain else percent(designs.all(-1).flatten().tolist()),
            "" if plain else percent(designs.flatten().tolist()),
            percent(words.all(-1).flatten().tolist()),
            percent(places.flatten().tolist()),
            "" if plain else percent((designs.all(-1) & words.all(-1) & places).flatten().tolist()),
        ]
        shown = ", shown small half of the time" if "small" in taught_by.widgets else ""
        lines.append(f"| {way}{shown} | {' | '.join(columns)} |")
    if not lines:
        return []
    return [
        f"{len(PAIRS)} pairs of test concepts that were taught apart, {len(PLACES)} backgrounds, {SEEDS} seeds, with the bias and "
        "temperature that concepts come with, unless a bias is named. A concept is recognised in its half: the first left, the "
        "second right.",
        "",
        "| combined | both designs | designs | both words | background | all of it |",
        "| --- | --- | --- | --- | --- | --- |",
        *lines,
        *(["", f"![Two concepts in one picture, in each of these ways]({FILE})"] if (out / FILE).exists() else []),
    ]
