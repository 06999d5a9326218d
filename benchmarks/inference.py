"""What the nodes for inference do in the emoji world, measured: attention, found objects, regions, layouts, locks.

    python -m benchmarks.inference [PART ...] [--emoji DIR]

Runs every graph in a real server, judges the pictures by the oracles, and writes `results/inference.md`, part by part: a part
that is not asked for keeps its last result. The demo's concepts serve, as the workflows have them. How Find Object reads attention
was chosen on other pictures of the same designs: these are no held-out numbers.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.concepts import DEVELOPMENT, TEST
from benchmarks.lab import RESULTS, Lab, draw, half, percent
from benchmarks.oracles import LEFT, RIGHT
from demo import make_concepts, world
from scripts import bootstrap
from scripts.graphs import Graph, Link
from scripts.make_workflows import SETTINGS
from scripts.server import Server

COLOURS = ("blue", "green", "purple", "pink")
BATCH = 8
PLACES = ("on the grass", "at night", "in the snow", "on the beach", "on a blue background", "on a purple background")


class Bench(Graph):
    """The demo's checkpoint with one of its concepts or more."""

    def __init__(self, *words: str, regions: bool = False, **settings: float) -> None:
        super().__init__()
        self.base, self.clip, self.vae = self.checkpoint()
        self.model, self.words = self.base, self.clip
        for i, word in enumerate(words):
            region = {"region": half(self, 32 * i)} if regions else {}
            loaded = self.load(f"demo-{word}.safetensors", **SETTINGS | settings, **region)
            self.model, self.words = self.apply(self.model, self.words, loaded)

    def draw(self, model: Link, positive: Link, seed: int) -> tuple[Link, Link]:
        """BATCH pictures: their latents, and them."""
        return draw(self, model, positive, self.text(self.words, ""), self.vae, seed, BATCH)


# ---- measures ----------------------------------------------------------------------------------------------------------------


def thing(picture: Tensor) -> Tensor:
    """Where a picture [64, 64, 3] of one thing on a plain colour differs from its background, bool [64, 64]."""
    bands = picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]
    edge = torch.cat([band.flatten(0, 1) for band in bands])
    return (picture - edge.median(0).values).norm(dim=2) > 0.2


def box(mask: Tensor) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a mask; rows and columns with hardly anything in them are left out."""
    columns, rows = ((mask.sum(d) >= 3).nonzero().flatten() for d in (0, 1))
    if not len(columns) or not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def shared(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Area that two boxes share, over that which they cover together."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(wide, 0) * max(high, 0)
    areas = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return both / (areas - both) if areas > both else 0.0


def overlap(a: Tensor, b: Tensor) -> float:
    """The same of two masks."""
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


# ---- parts -------------------------------------------------------------------------------------------------------------------


def attention(lab: Lab) -> list[str]:
    """Attention to a word inside its thing and outside of it."""
    rows, means = [], []
    for word in ("<demo-teddy>", *world.WORDS):
        ratios = []
        for i, colour in enumerate(COLOURS):
            graph = Bench("teddy")
            watch = graph.add("PerfusionWatchAttention", model=graph.model, each_step=False)
            positive = graph.text(graph.words, f"a photo of a {word} on a {colour} background")
            samples, images = graph.draw([watch, 0], positive, 100 + i)
            given = {"attention": [watch, 1], "samples": samples, "images": images}
            show = graph.add("PerfusionShowAttention", words=word, each_step=False, **given)
            drawn, maps = lab.pictures(graph, images, [graph.add("MaskToImage", mask=[show, 1]), 0])
            for picture, each in zip(drawn, maps[..., 0], strict=True):
                inside = thing(picture)
                if 0.05 < inside.float().mean() < 0.7:
                    ratios.append(float(each[inside].mean() / each[~inside].mean()))
        means.append(sum(ratios) / len(ratios))
        rows.append(f"| {word} | {means[-1]:.2f} | {min(ratios):.2f} | {percent([r >= 2 for r in ratios])} |")
    return [
        "Mean attention to a word inside its thing, over that outside of it, in pictures of one thing on a plain colour; the thing "
        "is what differs from the background's colour, and pictures where that is under 5 % or over 70 % are left out.",
        "",
        "| word | mean ratio | smallest | pictures of 2 and more |",
        "| --- | --- | --- | --- |",
        *rows,
    ]


def found(lab: Lab) -> list[str]:
    """Masks of Find Object against silhouettes."""
    rows: dict[str, list[float]] = {}
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    discs = [(torch.hypot(y - 31.5, x - 31.5) < r) for r in range(8, 30, 2)]
    scores: dict[tuple[str, str], list[list[float]]] = {}
    for designer, word in (*DEVELOPMENT, *TEST):
        sprite = world.sprites(lab.emoji, (designer,))[designer, word]
        rng = random.Random(f"{designer} {word}")
        for kind in ("large, in the middle", "small, anywhere"):
            masks, graph = [], Bench()
            names = []
            for i in range(4):
                image, mask = scene(sprite, kind, rng)
                image.save(lab.server.base / "input" / f"found-{i}.png")
                names.append([graph.add("LoadImage", image=f"found-{i}.png"), 0])
                masks.append(torch.from_numpy(np.asarray(mask).copy()) > 127)
            batch = [graph.add("BatchImagesNode", **{f"images__image{i}": name for i, name in enumerate(names)}), 0]
            links = {"model": graph.base, "clip": graph.clip, "vae": graph.vae, "images": batch}
            find = graph.add("PerfusionFindObject", word=word, size=64, seed=0, **links)
            (seen,) = lab.pictures(graph, [graph.add("MaskToImage", mask=[find, 0]), 0])
            ours = [overlap(m[..., 0] > 0.5, true) for m, true in zip(seen, masks, strict=True)]
            scores.setdefault((kind, "Find Object"), []).append(ours)
            scores.setdefault((kind, "discs"), []).append([[overlap(d, true) for d in discs] for true in masks])
            rows.setdefault(f"{word} by {designer}", []).append(sum(ours) / 4)
    lines = [
        "Intersection over union of the mask, cut at ½, with the silhouette, mean of four pictures. Large things in the middle are "
        "what the base was trained on, and what a disc covers well by itself: the disc is the best of all radii, in the middle.",
        "",
        "| concept | large, in the middle | small, anywhere |",
        "| --- | --- | --- |",
        *(f"| {name} | {a:.2f} | {b:.2f} |" for name, (a, b) in rows.items()),
        "",
        "| pictures | Find Object, mean | concepts of 0.5 and more | best disc, mean |",
        "| --- | --- | --- | --- |",
    ]
    for kind in ("large, in the middle", "small, anywhere"):
        ours = [sum(each) / 4 for each in scores[kind, "Find Object"]]
        disc = torch.tensor(scores[kind, "discs"]).mean((0, 1)).max()
        lines.append(f"| {kind} | {sum(ours) / len(ours):.2f} | {sum(s >= 0.5 for s in ours)} of {len(ours)} | {disc:.2f} |")
    return lines


def scene(sprite: Image.Image, kind: str, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """One thing on a background, and its mask, 64 pixels."""
    place = rng.choice(world.BACKGROUNDS)
    if kind.startswith("large"):
        return world.compose([sprite], place, rng)
    image, mask = world.background(place, rng), Image.new("L", (64, 64))
    size = rng.randint(26, 36)
    corner = int(rng.uniform(18, 46) - size / 2), int(rng.uniform(20, 44) - size / 2)
    emoji = sprite.resize((size, size), Image.Resampling.LANCZOS)
    image.paste(emoji, corner, emoji)
    mask.paste(255, corner, emoji.getchannel("A"))
    return image, mask


def regions(lab: Lab) -> list[str]:
    """Two concepts in one picture, with regions and without, and each alone."""
    rows, words = [], list(make_concepts.TAUGHT)
    for place in ("on the grass", "on the beach", "in the snow", "on a green background"):
        text = f"a <demo-{words[0]}> and a <demo-{words[1]}> {place}"
        for used in (True, False):
            drawn = torch.cat([one_batch(lab, Bench(*words, regions=used), text, seed) for seed in (300, 301)])
            right = [recognised(lab, drawn, word, side) for word, side in zip(words, (LEFT, RIGHT), strict=True)]
            kept = [said == place for said in lab.judges.backgrounds(drawn).best()]
            cells = " | ".join(f"{percent(designs)} | {percent(both)}" for designs, both in right)
            rows.append(f"| {place} | {'regions' if used else 'no regions'} | {cells} | {percent(kept)} |")
        alone = []
        for word in words:
            drawn = torch.cat([one_batch(lab, Bench(word), f"a photo of a <demo-{word}> {place}", seed) for seed in (300, 301)])
            alone += [percent(each) for each in recognised(lab, drawn, word, None)]
        rows.append(f"| {place} | each alone, whole picture | {' | '.join(alone)} | |")
    return [
        "Each concept's design recognised in its half of the picture, and its design and its word too. The judge is strict with "
        "the small base's blurred shapes: the last row of each place says how often it knows a concept that has a picture to "
        "itself.",
        "",
        f"| place | | {words[0]}'s design, left | and word | {words[1]}'s design, right | and word | background |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *rows,
    ]


def one_batch(lab: Lab, graph: Bench, text: str, seed: int) -> Tensor:
    """BATCH pictures of a prompt."""
    return lab.pictures(graph, graph.draw(graph.model, graph.text(graph.words, text), seed)[1])[0]


def recognised(lab: Lab, drawn: Tensor, word: str, side: tuple | None) -> tuple[list[bool], list[bool]]:
    """Whether the design of the demo's concept is seen in pictures, and whether its word is too."""
    design = [said == make_concepts.TAUGHT[word] for said in lab.judges.designs(drawn, word, side).best()]
    there = [said == word for said in lab.judges.words(drawn, side).best()]
    return design, [a and b for a, b in zip(design, there, strict=True)]


def layout(lab: Lab) -> list[str]:
    """The concept's picture in the layout of the plain word's."""
    ways = {"Keep Layout to the end": 1.0, "Keep Layout to 0.8": 0.8, "Keep Layout to 0.5": 0.5, "without": None}
    rows = []
    for bias in (0.4, 0.2):
        boxes: dict[str, list[float]] = {name: [] for name in ways}
        designs: dict[str, list[float]] = {name: [] for name in ways}
        for i, colour in enumerate(COLOURS):
            before, *after = in_layouts(lab, bias, colour, 400 + i, list(ways.values()))
            for name, pictures in zip(ways, after, strict=True):
                boxes[name] += [shared(box(thing(a)), box(thing(b))) for a, b in zip(before, pictures, strict=True)]
                designs[name] += lab.judges.designs(pictures, "teddy").of("fluent-emoji").tolist()
        for name in ways:
            mean, taken = sum(boxes[name]) / len(boxes[name]), sum(designs[name]) / len(designs[name])
            rows.append(f"| {bias} | {name} | {mean:.2f} | {percent([b >= 0.7 for b in boxes[name]])} | {taken:.2f} |")
    return [
        "Intersection over union of the thing's box in the plain word's picture and in the concept's, same seed; and the "
        "probability that the concept's picture shows the concept's design. At the lower bias the concept runs over its outlines.",
        "",
        "| bias | | box, mean | boxes of 0.7 and more | design |",
        "| --- | --- | --- | --- | --- |",
        *rows,
    ]


def in_layouts(lab: Lab, bias: float, colour: str, seed: int, ends: list[float | None]) -> list[Tensor]:
    """Pictures of the plain word, then of the concept: with its layout kept to each of `ends`, or not at all."""
    graph = Bench("teddy", bias=bias)
    watch = graph.add("PerfusionWatchAttention", model=graph.model, each_step=False)
    plain, named = (graph.text(graph.words, f"a photo of a {word} on a {colour} background") for word in ("teddy", "<demo-teddy>"))
    samples, first = graph.draw([watch, 0], plain, seed)
    drawn = [first]
    for end in ends:
        model = graph.model
        if end is not None:
            given = {"model": graph.model, "attention": [watch, 1], "samples": samples}
            model = [graph.add("PerfusionKeepLayout", start=0.0, end=end, **given), 0]
        drawn.append(graph.draw(model, named, seed)[1])
    return lab.pictures(graph, *drawn)


def locks(lab: Lab) -> list[str]:
    """Global key-locking beside local."""
    rows = []
    for bias in (0.2, 0.3, 0.4, 0.5, 0.6):
        for name in ("local", "global"):
            design, text = [], []
            for i, place in enumerate(PLACES):
                graph = Bench("teddy", bias=bias)
                prompt = f"a photo of a <demo-teddy> {place}"
                locked = [graph.add("PerfusionTextEncode", clip=graph.words, text=prompt), 0]
                positive = locked if name == "global" else graph.text(graph.words, prompt)
                (drawn,) = lab.pictures(graph, graph.draw(graph.model, positive, 500 + i)[1])
                design += lab.judges.designs(drawn, "teddy").of("fluent-emoji").tolist()
                words, backgrounds = lab.judges.words(drawn).best(), lab.judges.backgrounds(drawn).best()
                text += [w == "teddy" and b == place for w, b in zip(words, backgrounds, strict=True)]
            rows.append(f"| {bias} | {name} | {sum(design) / len(design):.2f} | {percent(text)} |")
    return [
        "Probability of the concept's design, and pictures whose word and background are the prompt's, over six places.",
        "",
        "| bias | lock | design | word and background |",
        "| --- | --- | --- | --- |",
        *rows,
    ]


PARTS: dict[str, tuple[str, Callable[[Lab], list[str]]]] = {
    "attention": ("Attention covers its thing", attention),
    "found": ("Objects found without a mask", found),
    "regions": ("Two concepts, two places", regions),
    "layout": ("Layout kept", layout),
    "locks": ("Global key-locking beside local", locks),
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all of them, if none is named")
    parser.add_argument("--emoji", type=Path, default=bootstrap.CACHE / "emoji", help="the emoji sets; fetched if missing")
    arguments = parser.parse_args()
    world.fetch(arguments.emoji)
    kept = RESULTS / "inference.json"
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    with Server(bootstrap.locate()) as server:
        lab = Lab(server, arguments.emoji)
        for name in arguments.parts or PARTS:
            print(name, flush=True)
            results[name] = PARTS[name][1](lab)
            kept.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            report(results)


def report(results: dict[str, list[str]]) -> None:
    """Write what there is."""
    lines = ["# Inference, measured", "", "Written by `python -m benchmarks.inference`.", ""]
    for name, (title, _) in PARTS.items():
        if name in results:
            lines += [f"## {title}", "", *results[name], ""]
    (RESULTS / "inference.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
