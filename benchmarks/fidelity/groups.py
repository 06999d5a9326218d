"""Measure two and three separately trained concepts in one image: whether each character is recognised in its part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.fidelity import concepts, sheet
from benchmarks.fidelity.concepts import MEASURED, Concept
from benchmarks.fidelity.methods import LORA, Recipe, Use, rare
from benchmarks.fidelity.trials import SEEDS, Trial, Workshop
from benchmarks.lab import SAMPLING, Lab, draw, part, percent
from perfusion_core.gated_edit import EXACT, PAPER
from scripts.generate.make_workflows import SETTINGS, TOGETHER
from scripts.harness.graphs import Graph, Link

PLACES = ("on the beach", "in the snow", "at night", "in the desert")
SIZES = (2, 3)
GROUPS: dict[int, tuple[tuple[Concept, ...], ...]] = {
    size: tuple(tuple(MEASURED[4 * (i // 4) + (i + j) % 4] for j in range(size)) for i in range(len(MEASURED))) for size in SIZES
}
"""Maps a size to its groups. MEASURED has two rounds of all four kinds; each of its concepts begins one group of each size, with
those that follow it in its round."""
OURS, FINE, AT_THE_WORD = "Perfusion", "Perfusion, keys in fine layers, half locked", "Perfusion, keys at the word, half locked"
FILES = {2: "fidelity-two.jpg", 3: "fidelity-three.jpg"}


@dataclass(frozen=True)
class Way:
    """A way to combine concepts.

    Attributes:
        method: The method that trained them, as in the tables of all methods; "" for the superclasses on the base model.
        regions: Whether each concept has its own part of the image.
        settings: Settings of each concept; for LoRAs, their `strength`.
        mode: Edit mode.
    """

    method: str = ""
    regions: bool = False
    settings: tuple[tuple[str, object], ...] = ()
    mode: str = EXACT


def perfusion(method: str, settings: Mapping[str, object], regions: bool = False, mode: str = EXACT, **changed: float) -> Way:
    """Return a way to combine concepts of Perfusion with the demo's settings for one concept or for several."""
    return Way(method, regions, tuple(sorted({**settings, "trigger": "", **changed}.items())), mode)


LORAS = {f"LoRA, strength {strength:g}": Way("LoRA", settings=(("strength", strength),)) for strength in (0.75, 1.0)}
WAYS: dict[int, dict[str, Way]] = {
    2: {
        "superclasses only": Way(),
        "Perfusion, with a region for each": perfusion(OURS, SETTINGS, regions=True),
        "Perfusion": perfusion(OURS, TOGETHER),
        f"{FINE}, with a region for each": perfusion(FINE, SETTINGS, regions=True, key_lock=0.5),
        FINE: perfusion(FINE, TOGETHER, key_lock=0.5),
        AT_THE_WORD: perfusion(AT_THE_WORD, TOGETHER),
        "Perfusion, the paper's form of the edit": perfusion(OURS, TOGETHER, mode=PAPER),
        **LORAS,
    },
    3: {
        "superclasses only": Way(),
        "Perfusion": perfusion(OURS, SETTINGS),
        FINE: perfusion(FINE, SETTINGS, key_lock=0.5),
        **LORAS,
    },
}
"""Maps the size of groups and the name of a row to the way that it measures."""


@dataclass(frozen=True)
class Group:
    """Concepts in one image, from left to right, how each was trained, and how they are combined."""

    concepts: tuple[Concept, ...]
    recipe: Recipe | None
    way: Way

    def in_areas(self) -> bool:
        """Whether each concept has a prompt of its own, in its part of the image: the base never draws three from one prompt."""
        return len(self.concepts) > 2

    def key(self) -> str:
        """Return the store's key for the group's scores."""
        told = [PLACES, SEEDS, SAMPLING, asdict(self.way), *(["areas"] if self.in_areas() else [])]
        how = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]
        return "/".join(["group", how, *(self.recipe.key(c, 0) if self.recipe else "-".join(c) for c in self.concepts)])


Recipes = Mapping[str, Recipe | None]
"""Maps each method to the recipe that it was tuned to."""


def groups(recipes: Recipes, name: str, size: int) -> list[Group]:
    """Return all groups of this size in the way with this name."""
    way = WAYS[size][name]
    return [Group(each, recipes[way.method] if way.method else None, way) for each in GROUPS[size]]


def run(shop: Workshop, recipes: Recipes, out: Path) -> bool:
    """Measure what is missing of all groups and draw their sheet; return False if time ran out."""

    def measured(lab: Lab, group: Group) -> bool:
        if not shop.in_time():
            return False
        shop.store.keep({group.key(): judged(lab, group, pictures(shop, group, PLACES, lab))})
        print(group.key(), flush=True)
        return True

    every = [group for size in SIZES for name in WAYS[size] for group in groups(recipes, name, size)]
    return shop.side_by_side(measured, [each for each in every if each.key() not in shop.store.kept]) and shown(shop, recipes, out)


def shown(shop: Workshop, recipes: Recipes, out: Path) -> bool:
    """Draw a sheet for each size; return False if time ran out."""
    return all(sheet_of(shop, recipes, size, out) for size in SIZES)


def sheet_of(shop: Workshop, recipes: Recipes, size: int, out: Path) -> bool:
    """Draw a row for every fourth group, a column for each way, the places in turn; return False if time ran out."""
    chosen = (0, len(MEASURED) // 2)

    def rows() -> sheet.Rows:
        found = {}
        for row, i in enumerate(chosen):
            each = [groups(recipes, name, size)[i] for name in WAYS[size]]
            title = ",\n".join(" ".join(concept) for concept in each[0].concepts)
            found[title] = [pictures(shop, group, [PLACES[row]], seeds=1)[0][0] for group in each]
        return found

    of = [groups(recipes, name, size)[i].key() for i in chosen for name in WAYS[size]]
    return sheet.draw(shop, f"groups-sheet-{size}", of, rows, list(WAYS[size]), out / FILES[size])


def pictures(shop: Workshop, group: Group, places: Sequence[str], lab: Lab | None = None, seeds: int = SEEDS) -> list[Tensor]:
    """Generate images [seeds, side, side times the group's size, 3] of a group in each of these places."""
    lab, graph, side = lab or shop.lab, Graph(), shop.bed.side
    model, clip, vae = graph.checkpoint(shop.bed.checkpoint)
    model, clip, names = ready(graph, shop, group, lab, (model, clip))
    negative, wide = graph.text(clip, ""), side * len(group.concepts)
    links = []
    for place in places:
        positive = prompt_in_areas(graph, clip, names, place, side) if group.in_areas() else prompt(graph, clip, names, place)
        links.append(draw(graph, model, positive, negative, vae, 9000 + 100 * PLACES.index(place), seeds, side, wide)[1])
    return lab.pictures(graph, *links)


def prompt(graph: Graph, clip: Link, names: list[str], place: str) -> Link:
    """Add the encoding of one prompt that names all characters."""
    first, last = ", ".join(f"a {name}" for name in names[:-1]), f"a {names[-1]}"
    return graph.text(clip, f"a photo of {first} and {last} {place}")


def prompt_in_areas(graph: Graph, clip: Link, names: list[str], place: str, side: int) -> Link:
    """Add the encodings of a prompt for each character, each for its own square of the image."""
    parts: list[Link] = []
    for i, name in enumerate(names):
        area = {"width": side, "height": side, "x": side * i, "y": 0, "strength": 1.0}
        parts.append([graph.add("ConditioningSetArea", conditioning=graph.text(clip, f"a photo of a {name} {place}"), **area), 0])
    joined = parts[0]
    for each in parts[1:]:
        joined = [graph.add("ConditioningCombine", conditioning_1=joined, conditioning_2=each), 0]
    return joined


def ready(graph: Graph, shop: Workshop, group: Group, lab: Lab, base: tuple[Link, Link]) -> tuple[Link, Link, list[str]]:
    """Return a MODEL and a CLIP with the group's concepts, and the texts that name them in prompts."""
    model, clip = base
    kinds, way, recipe = [kind for _, kind in group.concepts], group.way, group.recipe
    if recipe is None:
        return model, clip, kinds
    files = [shop.taught(Trial(concept, recipe, Use(), (), ()), lab) for concept in group.concepts]
    if recipe.teacher == LORA:
        for file in files:
            strength = dict(way.settings)["strength"]
            model = [graph.add("LoraLoaderModelOnly", model=model, lora_name=file.name, strength_model=strength), 0]
        return model, clip, [rare(kind) for kind in kinds]
    regions = [{"region": part(graph, i, len(files))} if way.regions else {} for i in range(len(files))]
    loaded = [graph.load(file.name, **dict(way.settings) | region) for file, region in zip(files, regions, strict=True)]
    return *graph.apply(model, clip, graph.combine(*loaded), way.mode), [f"<{file.stem}>" for file in files]


def judged(lab: Lab, group: Group, drawn: list[Tensor]) -> dict[str, list]:
    """Return whether all kinds and individuals are recognised, [places, seeds, size] each, and the place, [places, seeds]."""
    found: dict[str, list] = {"kinds": [], "individuals": [], "places": []}
    for place, images in zip(PLACES, drawn, strict=True):
        parts, asked = images.chunk(len(group.concepts), 2), [kind for _, kind in group.concepts]
        kinds = [[said == kind for said in lab.judges.say("kind", each).best()] for kind, each in zip(asked, parts, strict=True)]
        known = [
            lab.judges.recognised(each, concept[1], *concepts.which(concept))
            for concept, each in zip(group.concepts, parts, strict=True)
        ]
        places = [[said == place for said in lab.judges.say("place", each).best()] for each in parts]
        found["kinds"].append(torch.tensor(kinds).T.int().tolist())
        found["individuals"].append(torch.stack(known, 1).int().tolist())
        found["places"].append(torch.tensor(places).all(0).int().tolist())
    return found


def page(kept: Mapping[str, dict], recipes: Recipes, out: Path) -> list[str]:
    """Return the page's lines: a table and a sheet for each size, of those ways in which all groups were measured."""
    lines = []
    for size in SIZES:
        # The quick run has only some of the methods.
        there = [name for name, way in WAYS[size].items() if not way.method or way.method in recipes]
        rows = [row for name in there if (row := table_row(kept, name, groups(recipes, name, size)))]
        if rows:
            lines += [
                "",
                TOLD[size].format(groups=len(GROUPS[size]), alone=SETTINGS["bias"], together=TOGETHER["bias"]),
                "",
                "| method | all characters | characters | all kinds | place | everything |",
                "| --- | --- | --- | --- | --- | --- |",
                *rows,
            ]
            if (out / FILES[size]).exists():
                lines += ["", f"![{NUMBERS[size]} concepts in one image, in each of these ways]({FILES[size]})"]
    if not lines:
        return []
    return [
        f"Test concepts that were trained separately, together in one image, in {len(PLACES)} places with {SEEDS} seeds. Each "
        "concept must be recognised in its own part of the image, in the prompt's order from left to right. The bias of Perfusion "
        "without regions was chosen for the demo; LoRA was measured at two strengths, neither of which was chosen for combining.",
        *lines,
    ]


NUMBERS = {2: "Two", 3: "Three"}
TOLD = {
    2: "Two concepts in one prompt, {groups} groups. Perfusion uses a bias of {alone:g} with regions and {together:g} without:",
    3: "Three concepts, {groups} groups. The demo's base was trained on scenes of one or two characters, and leaves out the second "
    "of three that one prompt asks for. Here each has a prompt of its own, in its part of the image (ComfyUI's "
    "*ConditioningSetArea*); all concepts are applied to the whole image. Perfusion uses a bias of {alone:g}:",
}
"""Maps a size to the sentence above its table."""


def table_row(kept: Mapping[str, dict], name: str, each: list[Group]) -> str:
    """Return the table's row for a way; empty unless all of its groups were measured."""
    found = [scores for group in each if (scores := kept.get(group.key()))]
    if len(found) < len(each):
        return ""
    kinds, known, places = (torch.tensor([scores[part] for scores in found]).bool() for part in ("kinds", "individuals", "places"))
    plain = each[0].recipe is None
    columns = [
        "–" if plain else percent(known.all(-1).flatten().tolist()),
        "–" if plain else percent(known.flatten().tolist()),
        percent(kinds.all(-1).flatten().tolist()),
        percent(places.flatten().tolist()),
        "–" if plain else percent((known.all(-1) & kinds.all(-1) & places).flatten().tolist()),
    ]
    return f"| {name} | {' | '.join(columns)} |"
