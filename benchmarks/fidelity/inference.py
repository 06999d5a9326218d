"""Measure the nodes for inference in the demo's world: attention, found objects, regions, layouts, locks.

    python -m benchmarks.fidelity.inference [PART ...]

Runs every graph in a real server, lets the judges score the images, and writes `results/inference.md` part by part; parts that are
not requested keep their last results. It uses the demo's concepts with the settings of the workflows; `found` draws other
characters too.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.fidelity import layouts
from benchmarks.fidelity.concepts import DEVELOPMENT, TEST, check_packages, which
from benchmarks.fidelity.demo_graph import BANDS, PLACES, DemoGraph, recognised, thing
from benchmarks.fidelity.trials import Store, room
from benchmarks.lab import RESULTS, Lab, percent
from benchmarks.world.judges import left, right
from demo import make_pictures, world
from demo.base import PACKED
from demo.individuals import STYLES
from demo.make_concepts import TAUGHT
from demo.world import SIDE
from scripts.harness.server import Server
from scripts.setup import bootstrap


def attention(lab: Lab) -> list[str]:
    """Compare the attention to a word inside its character with that outside of it."""
    rows = []
    for word in ("<demo-monster>", *STYLES):
        ratios = []
        for i, place in enumerate(BANDS):
            graph = DemoGraph("monster")
            watch = graph.add("PerfusionWatchAttention", model=graph.model, each_step=False)
            positive = graph.text(graph.words, f"a photo of a {word} {place}")
            samples, images = graph.draw([watch, 0], positive, 100 + i)
            given = {"attention": [watch, 1], "samples": samples, "images": images}
            show = graph.add("PerfusionShowAttention", words=word, each_step=False, **given)
            drawn, maps = lab.pictures(graph, images, [graph.add("MaskToImage", mask=[show, 1]), 0])
            for picture, each in zip(drawn, maps[..., 0], strict=True):
                inside = thing(picture)
                if 0.05 < inside.float().mean() < 0.7:
                    ratios.append(float(each[inside].mean() / each[~inside].mean()))
        mean = sum(ratios) / len(ratios)
        rows.append(f"| {word} | {mean:.2f} | {min(ratios):.2f} | {percent([r >= 2 for r in ratios])} |")
    return [
        "Mean attention to a word inside the character, divided by that outside it, in images of one character against backgrounds "
        "made of horizontal bands. Pixels that differ from the image's edges at the same height count as the character; images in "
        "which they cover less than 5 % or more than 70 % are left out.",
        "",
        "| word | mean ratio | smallest | images with 2 or more |",
        "| --- | --- | --- | --- |",
        *rows,
    ]


def overlap(a: Tensor, b: Tensor) -> float:
    """Return the intersection over union of two masks."""
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def found(lab: Lab) -> list[str]:
    """Compare masks of Find Object with silhouettes."""
    rows: dict[str, list[float]] = {}
    across = torch.arange(SIDE) - (SIDE - 1) / 2
    discs = [(torch.hypot(*torch.meshgrid(across, across, indexing="ij")) < r) for r in range(SIDE // 8, SIDE // 2, SIDE // 32)]
    scores: dict[tuple[str, str], list[list[float]]] = {}
    for concept in (*DEVELOPMENT, *TEST):
        individual, kind = concept
        one, rng = make_pictures.individual(kind, *which(concept)), random.Random(" ".join(concept))
        for how in HOW:
            masks, graph = [], DemoGraph()
            names = []
            for i in range(4):
                image, mask = scene(one.picture(rng.choice(list(world.MOUTHS[kind]))), how, rng)
                image.save(lab.server.base / "input" / f"found-{i}.png")
                names.append([graph.add("LoadImage", image=f"found-{i}.png"), 0])
                masks.append(torch.from_numpy(np.asarray(mask).copy()) > 127)
            batch = [graph.add("BatchImagesNode", **{f"images__image{i}": name for i, name in enumerate(names)}), 0]
            links = {"model": graph.base, "clip": graph.clip, "vae": graph.vae, "images": batch}
            find = graph.add("PerfusionFindObject", word=kind, size=SIDE, seed=0, **links)
            (seen,) = lab.pictures(graph, [graph.add("MaskToImage", mask=[find, 0]), 0])
            ours = [overlap(m[..., 0] > 0.5, true) for m, true in zip(seen, masks, strict=True)]
            scores.setdefault((how, "Find Object"), []).append(ours)
            scores.setdefault((how, "discs"), []).append([[overlap(d, true) for d in discs] for true in masks])
            rows.setdefault(f"{individual} {kind}", []).append(sum(ours) / 4)
    large, small = HOW
    lines = [
        "Intersection over union of the mask, cut at ½, with the silhouette, mean of four pictures. The base model was trained on "
        "large characters in the middle, and a plain disc already covers those well; the disc is a centred one with the best "
        "radius.",
        "",
        f"| concept | {large} | {small} |",
        "| --- | --- | --- |",
        *(f"| {name} | {a:.2f} | {b:.2f} |" for name, (a, b) in rows.items()),
        "",
        "| pictures | Find Object, mean | concepts with 0.5 or more | best disc, mean |",
        "| --- | --- | --- | --- |",
    ]
    for how in HOW:
        ours = [sum(each) / 4 for each in scores[how, "Find Object"]]
        disc = torch.tensor(scores[how, "discs"]).mean((0, 1)).max()
        lines.append(f"| {how} | {sum(ours) / len(ours):.2f} | {sum(s >= 0.5 for s in ours)} of {len(ours)} | {disc:.2f} |")
    return lines


HOW = ("large, in the middle", "small, anywhere")
"""Size and position of the character in the pictures for Find Object."""


def scene(drawn: Image.Image, how: str, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """Draw one character in a random place; return the picture and its mask."""
    place = rng.choice(world.PLACES)
    if how == HOW[0]:
        return world.compose([world.Standing(drawn)], place, rng)
    image, mask = world.background(place, rng), Image.new("L", (SIDE, SIDE))
    scale = SIDE * rng.uniform(0.4, 0.56) / max(drawn.size)
    small = drawn.resize([max(1, round(n * scale)) for n in drawn.size], Image.Resampling.LANCZOS)
    corner = round(SIDE * rng.uniform(0.28, 0.72) - small.width / 2), round(SIDE * rng.uniform(0.31, 0.69) - small.height / 2)
    image.paste(small, corner, small)
    mask.paste(255, corner, small.getchannel("A"))
    return image, mask


def regions(lab: Lab) -> list[str]:
    """Compare two concepts in one image, with and without regions, with each concept alone."""
    rows, kinds = [], TAUGHT
    for place in PLACES[:4]:
        text = f"a photo of a <demo-{kinds[0]}> and a <demo-{kinds[1]}> {place}"
        for used in (True, False):
            drawn = torch.cat([one_batch(lab, DemoGraph(*kinds, regions=used), text, seed) for seed in (300, 301)])
            halves = left(drawn), right(drawn)
            known = [recognised(lab, each, kind) for each, kind in zip(halves, kinds, strict=True)]
            places = [lab.judges.say("place", each).best() for each in halves]
            kept = [one == other == place for one, other in zip(*places, strict=True)]
            cells = " | ".join(f"{percent(individuals)} | {percent(both)}" for individuals, both in known)
            rows.append(f"| {place} | {'regions' if used else 'no regions'} | {cells} | {percent(kept)} |")
        alone = []
        for kind in kinds:
            drawn = torch.cat([one_batch(lab, DemoGraph(kind), f"a photo of a <demo-{kind}> {place}", seed) for seed in (300, 301)])
            alone += [percent(each) for each in recognised(lab, drawn, kind)]
        rows.append(f"| {place} | each alone, in a square | {' | '.join(alone)} | |")
    return [
        "How often each concept is recognised in its half of a double-width image, and how often its kind is right as well. The "
        "last row for each place shows how often a concept is recognised when it has an image to itself.",
        "",
        f"| place | | the {kinds[0]}, left | and its kind | the {kinds[1]}, right | and its kind | the place, in both |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *rows,
    ]


def one_batch(lab: Lab, graph: DemoGraph, text: str, seed: int) -> Tensor:
    """Generate BATCH images of a prompt."""
    return lab.pictures(graph, graph.draw(graph.model, graph.text(graph.words, text), seed)[1])[0]


def locks(lab: Lab) -> list[str]:
    """Compare global with local key-locking."""
    rows = []
    for bias in (0.2, 0.3, 0.4, 0.5, 0.6):
        for name in ("local", "global"):
            known, text = [], []
            for i, place in enumerate(PLACES):
                graph = DemoGraph("monster", bias=bias)
                prompt = f"a photo of a <demo-monster> {place}"
                locked = [graph.add("PerfusionTextEncode", clip=graph.words, text=prompt), 0]
                positive = locked if name == "global" else graph.text(graph.words, prompt)
                (drawn,) = lab.pictures(graph, graph.draw(graph.model, positive, 500 + i)[1])
                known += recognised(lab, drawn, "monster")[0]
                kinds, places = lab.judges.say("kind", drawn).best(), lab.judges.say("place", drawn).best()
                text += [a == "monster" and b == place for a, b in zip(kinds, places, strict=True)]
            rows.append(f"| {bias} | {name} | {percent(known)} | {percent(text)} |")
    return [
        "Share of images in which the concept is recognised, and share in which the kind and place match the prompt, over "
        f"{len(PLACES)} places.",
        "",
        "| bias | lock | recognised | kind and place |",
        "| --- | --- | --- | --- |",
        *rows,
    ]


PARTS: dict[str, tuple[str, Callable[[Lab], list[str]]]] = {
    "attention": ("A word's attention falls on its character", attention),
    "found": ("Objects found without a mask", found),
    "regions": ("Two concepts with and without regions", regions),
    "layout": ("Keeping the layout", layouts.layout),
    "second": ("Keeping a second character", layouts.second),
    "locks": ("Global and local key-locking", locks),
}


def main() -> None:
    """Measure the requested parts and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all of them, if none is named")
    parts = parser.parse_args().parts or list(PARTS)
    if {"found", "second"} & set(parts):
        check_packages()
    kept = RESULTS / "inference.json"
    results = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    setup = bootstrap.locate()
    base = room(Store(RESULTS / "fidelity.json").belongs_to(PACKED))
    with Server(setup, base=bootstrap.stocked_base(setup, base)) as server:
        lab = Lab(server)
        for name in parts:
            print(name, flush=True)
            results[name] = PARTS[name][1](lab)
            kept.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            report(results)


def report(results: dict[str, list[str]]) -> None:
    """Write the page with all parts measured so far."""
    lines = ["# Inference, measured", "", "Written by `python -m benchmarks.fidelity.inference`.", ""]
    for name, (title, _) in PARTS.items():
        if name in results:
            lines += [f"## {title}", "", *results[name], ""]
    (RESULTS / "inference.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
