"""Measure two separately trained concepts in one image, at their own settings: whether each is recognised in its half."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.fidelity import concepts, sheet
from benchmarks.fidelity.concepts import TEST
from benchmarks.fidelity.methods import RARE, Recipe, Use
from benchmarks.fidelity.trials import SEEDS, Trial, Workshop
from benchmarks.lab import SAMPLING, Lab, draw, half, percent
from benchmarks.world import judges
from perfusion_core.concept import Concept
from perfusion_core.gated_edit import EXACT, MODES
from scripts.harness.graphs import Graph, Link

PLACES = ("on the beach", "in the snow", "at night", "in the desert")
PAIRS: tuple[tuple[concepts.Concept, concepts.Concept], ...] = tuple(
    (TEST[i], TEST[(i + 5) % len(TEST)]) for i in range(0, len(TEST), 2)
)
"""Each test concept once, paired with one of another kind: TEST has four concepts of each kind, ordered by kind."""
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
"""Maps a name to an edit mode, or to variants of the exact mode: "regions" gives each concept half of the image, "later" uses the
higher bias LATER, "locked" uses Text Encode, Keys Locked.
"""
LORAS = {f"two LoRAs, strength {strength:g}": strength for strength in (0.75, 1.0, 1.25)}
"""Concepts trained as LoRAs, both loaded with this strength."""
LATER = 0.8
FILE = "fidelity-pairs.png"


@dataclass(frozen=True)
class Pair:
    """Two concepts and how they are combined."""

    left: concepts.Concept
    right: concepts.Concept
    recipe: Recipe
    way: str

    def key(self) -> str:
        """Return the store's key for the pair's scores."""
        how = hashlib.sha256(json.dumps([PLACES, SEEDS, SAMPLING]).encode()).hexdigest()[:8]
        way = LORAS.get(self.way) or WAYS[self.way] or "plain"
        return f"pair/{way}/{how}/{self.recipe.key(self.left, 0)}/{self.recipe.key(self.right, 0)}"


def run(shop: Workshop, recipe: Recipe, lora: Recipe | None, out: Path) -> bool:
    """Measure what is missing of all pairs and draw their sheet; return False if time ran out."""

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
    """Return the recipes, each with the ways in which its concepts are combined."""
    return [(recipe, tuple(WAYS)), *([(lora, tuple(LORAS))] if lora else [])]


def shown(shop: Workshop, recipe: Recipe, out: Path) -> bool:
    """Draw the sheet: a row for each pair, a column for each way, the places in turn. Return False if time ran out."""

    def rows() -> sheet.Rows:
        found = {}
        for i, (left, right) in enumerate(PAIRS):
            drawn = [pictures(shop, Pair(left, right, recipe, way), [PLACES[i % len(PLACES)]])[0] for way in WAYS]
            found[f"{' '.join(left)},\n{' '.join(right)}"] = [each[0] for each in drawn]
        return found

    return sheet.draw(shop, "pairs-sheet", [*(recipe.key(left, 0) for left, _ in PAIRS), *WAYS], rows, list(WAYS), out / FILE)


def pictures(shop: Workshop, pair: Pair, places: Sequence[str], lab: Lab | None = None) -> list[Tensor]:
    """Generate images [seeds, side, 2 side, 3] of a pair in each of these places."""
    lab, graph, side = lab or shop.lab, Graph(), shop.bed.side
    model, clip, vae = graph.checkpoint(shop.bed.checkpoint)
    model, clip, names = ready(graph, shop, pair, lab, model, clip)
    negative = graph.text(clip, "")
    texts = [f"a photo of a {names[0]} and a {names[1]} {place}" for place in places]
    locked = "locked" in WAYS.get(pair.way, "")
    prompts = [[graph.add("PerfusionTextEncode", clip=clip, text=t), 0] if locked else graph.text(clip, t) for t in texts]
    seeds = [9000 + 100 * PLACES.index(place) for place in places]
    ways = zip(prompts, seeds, strict=True)
    return lab.pictures(
        graph, *(draw(graph, model, prompt, negative, vae, seed, SEEDS, side, 2 * side)[1] for prompt, seed in ways)
    )


def ready(graph: Graph, shop: Workshop, pair: Pair, lab: Lab, model: Link, clip: Link) -> tuple[Link, Link, list[str]]:
    """Return a MODEL and a CLIP with both concepts, and the texts that name the concepts in prompts."""
    kinds = [kind for _, kind in (pair.left, pair.right)]
    if WAYS.get(pair.way) == "":
        return model, clip, kinds
    files = [shop.taught(Trial(concept, pair.recipe, Use(), (), ()), lab) for concept in (pair.left, pair.right)]
    if pair.way in LORAS:
        for file in files:
            model = [graph.add("LoraLoaderModelOnly", model=model, lora_name=file.name, strength_model=LORAS[pair.way]), 0]
        return model, clip, [f"{RARE} {kind}" for kind in kinds]
    way = WAYS[pair.way]
    loaded = [graph.load(file.name, **settings(graph, shop, file, shop.bed.side * i, way)) for i, file in enumerate(files)]
    return *graph.apply(model, clip, graph.combine(*loaded), way if way in MODES else EXACT), [f"<{file.stem}>" for file in files]


def settings(graph: Graph, shop: Workshop, file: Path, x: int, way: str) -> dict[str, object]:
    """Return the settings that override a concept's own in this way: a region, another bias, or nothing."""
    if way in MODES:
        return {}
    concept = Concept.load(shop.lab.server.base / "models" / "perfusion" / file)
    given = {"bias": LATER if "later" in way else concept.bias, "temperature": concept.temperature}
    return given | ({"region": half(graph, x)} if "regions" in way else {})


def judged(lab: Lab, pair: Pair, drawn: list[Tensor]) -> dict[str, list]:
    """Return whether both kinds and both individuals are recognised, [places, seeds, 2] each, and the place, [places, seeds]."""
    found: dict[str, list] = {"kinds": [], "individuals": [], "places": []}
    for place, images in zip(PLACES, drawn, strict=True):
        halves = [(pair.left, judges.left(images)), (pair.right, judges.right(images))]
        kinds = [[said == kind for said in lab.judges.say("kind", each).best()] for (_, kind), each in halves]
        known = [lab.judges.recognised(each, concept[1], *concepts.which(concept)) for concept, each in halves]
        places = [[said == place for said in lab.judges.say("place", each).best()] for _, each in halves]
        found["kinds"].append(torch.tensor(kinds).T.int().tolist())
        found["individuals"].append(torch.stack(known, 1).int().tolist())
        found["places"].append(torch.tensor(places).all(0).int().tolist())
    return found


def page(kept: Mapping[str, dict], recipe: Recipe, lora: Recipe | None, out: Path) -> list[str]:
    """Return the page's lines: a table of those ways with which all pairs were measured."""
    lines = []
    for taught_by, way in [(each, way) for each, ways in taught(recipe, lora) for way in ways]:
        each = [kept.get(Pair(left, right, taught_by, way).key()) for left, right in PAIRS]
        if any(scores is None for scores in each):
            continue
        kinds, known, places = (
            torch.tensor([scores[name] for scores in each if scores]).bool() for name in ("kinds", "individuals", "places")
        )
        plain = WAYS.get(way) == ""
        columns = [
            "" if plain else percent(known.all(-1).flatten().tolist()),
            "" if plain else percent(known.flatten().tolist()),
            percent(kinds.all(-1).flatten().tolist()),
            percent(places.flatten().tolist()),
            "" if plain else percent((known.all(-1) & kinds.all(-1) & places).flatten().tolist()),
        ]
        lines.append(f"| {way} | {' | '.join(columns)} |")
    if not lines:
        return []
    return [
        f"{len(PAIRS)} pairs of test concepts that were taught apart, {len(PLACES)} places, {SEEDS} seeds, with the bias and "
        "temperature that concepts come with, unless a bias is named. A concept is recognised in its half: the first left, the "
        "second right.",
        "",
        "| combined | both individuals | individuals | both kinds | place | all of it |",
        "| --- | --- | --- | --- | --- | --- |",
        *lines,
        *(["", f"![Two concepts in one picture, in each of these ways]({FILE})"] if (out / FILE).exists() else []),
    ]
