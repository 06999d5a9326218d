"""Measure Keep Layout: how well it keeps a character's place, and a second character beside it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from benchmarks.fidelity.bench import whole
from benchmarks.fidelity.characters import CharacterBed
from benchmarks.fidelity.concepts import which
from benchmarks.fidelity.demo_graph import BANDS, BATCH, PLACES, DemoGraph, recognised, thing
from benchmarks.fidelity.levers import LEVERED, LEVERS
from benchmarks.fidelity.trials import Store, Workshop
from benchmarks.lab import Lab, draw, percent
from benchmarks.world.judges import left, right
from demo.world import SIDE
from scripts.generate.make_workflows import SETTINGS
from scripts.harness.graphs import Graph, Link

CROWDED: dict[str, tuple[float, float | None]] = {
    "keys half locked": (0.5, None),
    "keys as learned": (0.0, None),
    **{f"keys as learned, Keep Layout to {end:g}": (0.0, end) for end in (0.3, 0.5, 0.8, 1.0)},
}
"""Maps a row's name to the concept's key_lock, and to the end of Keep Layout if it is used."""
CROWDED_BIAS = 0.5


def box(mask: Tensor) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a mask, ignoring rows and columns with fewer than three pixels."""
    columns, rows = ((mask.sum(d) >= 3).nonzero().flatten() for d in (0, 1))
    if not len(columns) or not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def shared(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Return the intersection over union of two boxes."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(wide, 0) * max(high, 0)
    areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return both / (areas - both) if areas > both else 0.0


def layout(lab: Lab) -> list[str]:
    """Measure how well the concept's image keeps the layout of the superclass's image."""
    ways = {"Keep Layout to the end": 1.0, "Keep Layout to 0.8": 0.8, "Keep Layout to 0.5": 0.5, "without": None}
    rows = []
    for bias in (0.4, 0.2):
        boxes: dict[str, list[float]] = {name: [] for name in ways}
        known: dict[str, list[bool]] = {name: [] for name in ways}
        for i, place in enumerate(BANDS):
            before, *after = in_layouts(lab, bias, place, 400 + i, list(ways.values()))
            for name, pictures in zip(ways, after, strict=True):
                boxes[name] += [shared(box(thing(a)), box(thing(b))) for a, b in zip(before, pictures, strict=True)]
                known[name] += recognised(lab, pictures, "monster")[0]
        for name in ways:
            mean = sum(boxes[name]) / len(boxes[name])
            rows.append(f"| {bias} | {name} | {mean:.2f} | {percent([b >= 0.7 for b in boxes[name]])} | {percent(known[name])} |")
    return [
        "Intersection over union of the character's bounding boxes in the image of the superclass and in that of the concept, with "
        "the same seed, and the share of the concept's images in which it is recognised.",
        "",
        "| bias | | box, mean | boxes with 0.7 or more | recognised |",
        "| --- | --- | --- | --- | --- |",
        *rows,
    ]


def kept(graph: Graph, model: Link, attention: Link, samples: Link, end: float) -> Link:
    """Add the node that keeps the layout of a watched image until `end`, and return its MODEL."""
    given = {"model": model, "attention": attention, "samples": samples}
    return [graph.add("PerfusionKeepLayout", start=0.0, end=end, **given), 0]


def in_layouts(lab: Lab, bias: float, place: str, seed: int, ends: list[float | None]) -> list[Tensor]:
    """Generate images of the superclass, then of the concept with that layout kept until each of `ends` (None: not kept)."""
    graph = DemoGraph("monster", bias=bias)
    watch = graph.add("PerfusionWatchAttention", model=graph.model, each_step=False)
    plain, named = (graph.text(graph.words, f"a photo of a {word} {place}") for word in ("monster", "<demo-monster>"))
    samples, first = graph.draw([watch, 0], plain, seed)
    drawn = [first]
    for end in ends:
        model = graph.model
        if end is not None:
            model = kept(graph, model, [watch, 1], samples, end)
        drawn.append(graph.draw(model, named, seed)[1])
    return lab.pictures(graph, *drawn)


def second(lab: Lab) -> list[str]:
    """Measure whether Keep Layout keeps a second character, which a concept with trained keys crowds out."""
    shop = Workshop([lab], CharacterBed(lab.judges), Store(lab.server.base / "inference.json"))
    known, there = ({name: [] for name in CROWDED} for _ in range(2))
    for trial in whole().levers(LEVERS)["keys at the word, half locked"]:
        file, kind = shop.taught(trial), trial.concept[1]
        other = "monster" if kind == "robot" else "robot"
        for i, place in enumerate(PLACES[:2]):
            drawn = beside(lab, file, f"a photo of a {{}} and a {other} {place}", kind, 600 + i)
            for name, images in zip(CROWDED, drawn, strict=True):
                known[name] += lab.judges.recognised(left(images), kind, *which(trial.concept)).tolist()
                there[name] += [said == other for said in lab.judges.say("kind", right(images)).best()]
    rows = []
    for name in CROWDED:
        both = [a and b for a, b in zip(known[name], there[name], strict=True)]
        rows.append(f"| {name} | {percent(known[name])} | {percent(there[name])} | {percent(both)} |")
    return [
        f"{len(LEVERED)} development characters with keys trained at the word, at a bias of {CROWDED_BIAS:g}, in prompts "
        "that ask for a second character on the right. Keep Layout keeps the layout of the image of the superclass in the same "
        "prompt.",
        "",
        "| | recognised, left | the second, right | both |",
        "| --- | --- | --- | --- |",
        *rows,
    ]


def beside(lab: Lab, file: Path, prompt: str, kind: str, seed: int) -> list[Tensor]:
    """Generate images of a concept file in a prompt with {} for its word, in each of the ways of CROWDED."""
    graph, links = Graph(), []
    base, clip, vae = graph.checkpoint()
    settings = SETTINGS | {"bias": CROWDED_BIAS, "trigger": "<it>"}
    model, words = graph.apply(base, clip, graph.load(str(file), **settings | {"key_lock": 0.0}))
    half, _ = graph.apply(base, clip, graph.load(str(file), **settings | {"key_lock": 0.5}))
    plain, named, negative = (graph.text(words, text) for text in (prompt.format(kind), prompt.format("<it>"), ""))
    watch = graph.add("PerfusionWatchAttention", model=model, each_step=False)

    def drawn(of: Link, positive: Link) -> tuple[Link, Link]:
        return draw(graph, of, positive, negative, vae, seed, BATCH, wide=2 * SIDE)

    samples, _ = drawn([watch, 0], plain)
    for lock, end in CROWDED.values():
        used = half if lock else model
        if end is not None:
            used = kept(graph, model, [watch, 1], samples, end)
        links.append(drawn(used, named)[1])
    return lab.pictures(graph, *links)
