"""Measure the nodes for inference in the demo's world: attention, found objects, layouts.

    python -m benchmarks.fidelity.inference [PART ...]

Runs every graph in a real server, lets the judges score the images, and writes `results/inference.md` part by part; parts that are
not requested keep their last results. It uses the demo's concepts with the settings of the workflows; `found` and `second` draw
other characters too. It shares a folder with `python -m benchmarks.fidelity`; run one after the other.
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
from benchmarks.fidelity.demo_graph import BANDS, DemoGraph, thing
from benchmarks.fidelity.trials import Store, room
from benchmarks.lab import RESULTS, Lab, percent
from demo import make_pictures, world
from demo.base import PACKED
from demo.individuals import STYLES
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


PARTS: dict[str, tuple[str, Callable[[Lab], list[str]]]] = {
    "attention": ("A word's attention falls on its character", attention),
    "found": ("Objects found without a mask", found),
    "layout": ("Keeping the layout", layouts.layout),
    "second": ("Keeping a second character", layouts.second),
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
