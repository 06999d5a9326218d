"""Measure what Training Options does, on development characters: captions, pictures in their own shape, the choice of a step.

    python -m benchmarks.fidelity.options [PART ...] [--minutes N]

`captions`: a character that holds a balloon in every training picture, trained without masks: how often the balloon appears with
prompts that do not ask for it. `shapes`: two characters side by side as one concept, twice as wide as high, trained whole and cut
to squares. `choice`: which of every 25th step is kept by the loss and by the judges' view of images. `style`: a concept that is the
style of pictures, not an object in them. Writes `results/options.md`; all scores are kept in a JSON file beside it, and nothing is
measured twice.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.fidelity import characters, methods, plots
from benchmarks.fidelity.concepts import Concept, individual, which
from benchmarks.fidelity.demo_quality import workshop
from benchmarks.fidelity.fronts import harmonic_mean
from benchmarks.fidelity.groups import PLACES
from benchmarks.fidelity.levers import LEVERED
from benchmarks.fidelity.methods import PERFUSION, batch
from benchmarks.fidelity.trials import SEEDS, Store, Workshop
from benchmarks.lab import RESULTS, draw, read
from benchmarks.world.judges import left, right
from demo import make_pictures, world
from demo.individuals import MOODS, Individual
from demo.world import SIDE
from perfusion_core.concept import Concept as Taught
from perfusion_core.judgement import CONTEXTS, Judgement
from scripts.generate.make_workflows import SETTINGS
from scripts.harness.graphs import Graph

WIDE = 136
"""Size at which a picture of 192 by 96 pixels keeps its own: its bucket has about the area of a square of this side."""
ALONE = tuple(f"a photo of a {{}} {place}" for place in PLACES)
WIDGETS = methods.WIDGETS[PERFUSION] | {"seed": 0}
HASTE = 3.0
"""Factor of both learning rates in `choice`: with the demo's, the last step is the best one, and there is nothing to choose."""


@dataclass(frozen=True)
class Teaching:
    """A training run in the server.

    Attributes:
        name: of its file.
        word: superclass.
        pictures: files in the server's input folder.
        masked: whether their alpha is the mask.
        widgets: differences from WIDGETS.
        options: values of Training Options, if it is connected.
    """

    name: str
    word: str
    pictures: tuple[str, ...]
    masked: bool = True
    widgets: dict[str, object] | None = None
    options: dict[str, object] | None = None

    def taught(self, shop: Workshop) -> Path:
        """Return the concept's path within its folder; train it if there is none."""
        folder, file = shop.lab.server.base / "models" / "perfusion", f"options-{self.name}"
        if not (folder / f"{file}.safetensors").exists():
            graph = Graph()
            model, clip, vae = graph.checkpoint(shop.bed.checkpoint)
            loaded = [graph.add("LoadImage", image=name) for name in self.pictures]
            inputs: dict[str, object] = {"images": batch(graph, "image", [[key, 0] for key in loaded])}
            if self.masked:
                inputs["masks"] = batch(graph, "mask", [[key, 1] for key in loaded])
            if self.options:
                inputs["options"] = graph.options(**self.options)
            widgets = WIDGETS | {"size": SIDE, "superclass": self.word, "trigger": f"<{file}>"} | (self.widgets or {})
            taught = graph.add("PerfusionTrain", model=model, clip=clip, vae=vae, **inputs, **widgets)
            graph.save([taught, 0], file, overwrite=True, precision="half")
            shop.lab.server.run(graph.nodes, timeout=36000)
        return Path(f"{file}.safetensors")


def drawn(
    shop: Workshop, file: Path | None, prompts: tuple[str, ...], word: str, wide: int = 0, seeds: int = SEEDS, **settings: float
) -> list[Tensor]:
    """Generate images [seeds, SIDE, SIDE or wide, 3] of prompts with a concept, or with the superclass."""
    graph = Graph()
    model, clip, vae = graph.checkpoint(shop.bed.checkpoint)
    if file is not None:
        model, clip = graph.apply(model, clip, graph.load(str(file), **SETTINGS | {"trigger": "<it>"} | settings))
        word = "<it>"
    negative, links = graph.text(clip, ""), []
    for i, prompt in enumerate(prompts):
        links.append(draw(graph, model, graph.text(clip, prompt.format(word)), negative, vae, 7000 + 100 * i, seeds, SIDE, wide)[1])
    return shop.lab.pictures(graph, *links)


def painted(shop: Workshop, name: str, them: list[Individual], carries: bool = False) -> tuple[str, ...]:
    """Write training pictures of characters side by side into the input folder, and return their names."""
    names, folder = [], shop.lab.server.base / "input"
    for i, place in enumerate(make_pictures.PLACES):
        standing = []
        for one in them:
            mouths = list(MOODS[one.kind].values())[i % len(MOODS[one.kind])]
            standing.append(world.Standing(one.picture(mouths[0], SIDE * 3 // 2), carries))
        picture, mask = world.compose(standing, place, random.Random(1000 + i), SIDE)
        picture.putalpha(mask.point(lambda share: 255 - (share + 1) // 2))
        names.append(f"options-{name}-{i}.png")
        picture.save(folder / names[-1])
    return tuple(names)


def kept(shop: Workshop, key: str, measured: Callable[[], dict]) -> bool:
    """Measure and keep what is not kept yet; return False if there is no time left."""
    if key not in shop.store.kept:
        if not shop.in_time():
            return False
        start = time.time()
        shop.store.keep({key: measured()})
        print(f"{key}: {shop.store.kept[key]} ({time.time() - start:.0f} s)", flush=True)
    return True


# ---- captions ----------------------------------------------------------------------------------------------------------------

HELD = tuple(f"a photo of a {{}} holding a balloon {place}" for place in make_pictures.PLACES)
SAID: dict[str, dict[str, object] | None] = {
    "templates alone": None,
    "captions, half of the time": {"captions": "\n".join(HELD), "captioned": 0.5},
    "captions": {"captions": "\n".join(HELD)},
}


def run_captions(shop: Workshop) -> bool:
    """Measure a character that holds a balloon in all pictures, with and without captions that mention it."""

    def measured(concept: Concept, name: str, options: dict[str, object] | None) -> dict:
        pictures = painted(shop, f"held-{concept[1]}", [individual(concept)], carries=True)
        file = Teaching(f"held-{concept[1]}-{list(SAID).index(name)}", concept[1], pictures, False, None, options).taught(shop)
        found = torch.cat(drawn(shop, file, ALONE, concept[1]))
        asked = torch.cat(drawn(shop, file, (f"a photo of a {{}} {world.CARRIED} on the beach",), concept[1]))
        return {
            "balloon": share(shop, "balloon", "yes", found),
            "balloon when asked": share(shop, "balloon", "yes", asked),
            "recognised": float(shop.lab.judges.recognised(found, concept[1], *which(concept)).float().mean()),
            "details": float(shop.bed.details(concept, found).mean()),
            "place": placed(shop, found),
        }

    return all(
        kept(shop, f"captions/{concept[1]}/{name}", lambda c=concept, n=name, o=options: measured(c, n, o))
        for concept in LEVERED[:3]
        for name, options in SAID.items()
    )


def share(shop: Workshop, question: str, answer: str, images: Tensor) -> float:
    """Return the share of images about which the judges give this answer."""
    return float(np.mean([best == answer for best in shop.lab.judges.say(question, images).best()]))


def placed(shop: Workshop, images: Tensor) -> float:
    """Return the share of images, SEEDS for each of PLACES, that show the place asked for."""
    wanted = [place for place in PLACES for _ in range(len(images) // len(PLACES))]
    return float(np.mean([best == place for best, place in zip(shop.lab.judges.say("place", images).best(), wanted, strict=True)]))


def captions_page(store: Store) -> list[str]:
    """Return the page's lines on captions."""
    columns = ("balloon", "balloon when asked", "recognised", "details", "place")
    rows = measured_in_all(store, "captions", [concept[1] for concept in LEVERED[:3]], SAID)
    if not rows:
        return []
    return [
        f"{len(rows['captions'])} characters that hold a balloon in all four training pictures, trained without masks. The "
        f"captions mention it: *a photo of a <it> holding a balloon in a room*. {len(ALONE)} prompts that do not ask for a "
        f"balloon, {SEEDS} seeds.",
        "",
        f"| | {' | '.join(columns)} |",
        f"| --- |{' --- |' * len(columns)}",
        *table(rows, columns),
    ]


def measured_in_all(store: Store, part: str, kinds: Sequence[str], variants: Iterable[str]) -> dict[str, list[dict]]:
    """Return the scores of each variant over those kinds for which all variants were measured; empty if there are none."""
    names = list(variants)
    whole = [kind for kind in kinds if all(f"{part}/{kind}/{name}" in store.kept for name in names)]
    return {name: [store.kept[f"{part}/{kind}/{name}"] for kind in whole] for name in names} if whole else {}


def table(rows: dict[str, list[dict]], columns: tuple[str, ...]) -> list[str]:
    """Return table rows of means in per cent."""
    return [
        f"| {name} | {' | '.join(f'{100 * np.mean([each[column] for each in found]):.0f} %' for column in columns)} |"
        for name, found in rows.items()
    ]


# ---- shapes ------------------------------------------------------------------------------------------------------------------

PAIRS = ((("development-0", "monster"), ("development-1", "monster")), (("development-0", "blob"), ("development-1", "blob")))
SHAPES: dict[str, tuple[dict[str, object], dict[str, object] | None]] = {
    "cut to squares": ({}, None),
    "whole": ({"size": WIDE}, {"shape": "whole"}),
}


def run_shapes(shop: Workshop) -> bool:
    """Measure two characters side by side that are one concept."""

    def measured(pair: tuple[Concept, Concept], name: str) -> dict:
        kind, (widgets, options) = pair[0][1], SHAPES[name]
        pictures = painted(shop, f"wide-{kind}", [individual(each) for each in pair])
        file = Teaching(f"wide-{kind}-{list(SHAPES).index(name)}", kind, pictures, True, widgets, options).taught(shop)
        found = torch.cat(drawn(shop, file, ALONE, kind, 2 * SIDE))
        halves = [shop.lab.judges.recognised(part(found), kind, *which(one)) for part, one in zip((left, right), pair, strict=True)]
        return {
            "the left one": float(halves[0].float().mean()),
            "the right one": float(halves[1].float().mean()),
            "both": float(torch.stack(halves).all(0).float().mean()),
            "place": placed(shop, left(found)),
        }

    return all(
        kept(shop, f"shapes/{pair[0][1]}/{name}", lambda p=pair, n=name: measured(p, n)) for pair in PAIRS for name in SHAPES
    )


def shapes_page(store: Store) -> list[str]:
    """Return the page's lines on shapes."""
    columns = ("the left one", "the right one", "both", "place")
    rows = measured_in_all(store, "shapes", [pair[0][1] for pair in PAIRS], SHAPES)
    if not rows:
        return []
    return [
        f"Two characters side by side trained as one concept, from four masked pictures of {2 * SIDE} by {SIDE} pixels. Images are "
        f"generated in the same shape with {len(ALONE)} prompts and {SEEDS} seeds, for {len(PAIRS)} such pairs. Recognised out of "
        "240 of the kind:",
        "",
        f"| | {' | '.join(columns)} |",
        f"| --- |{' --- |' * len(columns)}",
        *table(rows, columns),
    ]


# ---- the choice of a step ----------------------------------------------------------------------------------------------------


def run_choice(shop: Workshop) -> bool:
    """Measure every 25th step by both rules, and those that are kept by the usual prompts."""
    return all(kept(shop, f"choice/{concept[1]}", lambda c=concept: chosen(shop, c)) for concept in LEVERED)


def chosen(shop: Workshop, concept: Concept) -> dict:
    """Return the steps that are kept by the loss and by pictures, and the harmonic mean of each and of the last one."""
    rates = {name: HASTE * WIDGETS[name] for name in ("word_rate", "output_rate")}
    widgets, pictures = rates | {"save_every": 25, "keep": "best"}, painted(shop, f"one-{concept[1]}", [individual(concept)])
    start = time.time()
    Teaching(f"choice-{concept[1]}", concept[1], pictures, True, widgets).taught(shop)
    taught, start = time.time() - start, time.time()
    folder = shop.lab.server.base / "models" / "perfusion"
    files = sorted(folder.glob(f"steps/options-choice-{concept[1]}-*/*.safetensors"))
    seen = {file: judged(shop, concept, file.relative_to(folder)) for file in files}
    looked = time.time() - start
    told = {file: Taught.load(file).training for file in files}
    by_loss, by_pictures = files[0], max(files, key=lambda file: seen[file])
    for file in files[1:]:
        one, other = (Judgement(told[each]["held_out_loss"], told[each]["followed"]) for each in (file, by_loss))
        by_loss = file if one.beats(other) else by_loss
    found: dict[str, float] = {"training": taught, "looking": looked}
    scores = {file: harmonic(shop, concept, file.relative_to(folder)) for file in {by_loss, by_pictures, files[-1]}}
    for name, file in (("by loss", by_loss), ("by pictures", by_pictures), ("last", files[-1])):
        found |= {f"{name}: step": int(file.stem), name: scores[file]}
    return found


def judged(shop: Workshop, concept: Concept, file: Path) -> float:
    """Return the harmonic mean of likeness and place in a few images, as a training run would see them: 4 prompts, 2 seeds."""
    prompts = tuple(text for text in CONTEXTS if any(place in text for place in world.PLACES))[:4]
    found = torch.cat(drawn(shop, file, prompts, concept[1], seeds=2))
    places = [next(place for place in world.PLACES if place in text) for text in prompts for _ in range(2)]
    text = float(np.mean([a == b for a, b in zip(shop.lab.judges.say("place", found).best(), places, strict=True)]))
    return float(harmonic_mean(likeness(shop, concept, found), text))


def likeness(shop: Workshop, concept: Concept, images: Tensor) -> float:
    """Return the benchmark's likeness: the mean of recognised and details."""
    known = shop.lab.judges.recognised(images, concept[1], *which(concept)).float().mean()
    return float(known + shop.bed.details(concept, images).mean()) / 2


def harmonic(shop: Workshop, concept: Concept, file: Path) -> float:
    """Return the harmonic mean of likeness and text over the benchmark's prompts."""
    prompts, found = characters.prompts(concept), []
    for wide in (False, True):
        some = [prompt for prompt in prompts if prompt.wide is wide]
        images = drawn(shop, file, tuple(prompt.text for prompt in some), concept[1], 2 * SIDE if wide else 0)
        for prompt, each in zip(some, images, strict=True):
            squares = [left(each), right(each)] if wide else [each]
            found.append((likeness(shop, concept, squares[0]), float(shop.bed.there(prompt, concept[1], squares).mean())))
    return float(harmonic_mean(*(float(np.mean(part)) for part in zip(*found, strict=True))))


def choice_page(store: Store) -> list[str]:
    """Return the page's lines on the choice of a step."""
    found = {concept: store.kept.get(f"choice/{concept[1]}") for concept in LEVERED}
    lines = [
        f"| {' '.join(concept)} | "
        + " | ".join(f"{each[name]:.2f} (step {each[f'{name}: step']})" for name in ("by loss", "by pictures", "last"))
        + f" | {each['training']:.0f} s | {each['looking']:.0f} s |"
        for concept, each in found.items()
        if each
    ]
    if not lines:
        return []
    means = [np.mean([each[name] for each in found.values() if each]) for name in ("by loss", "by pictures", "last")]
    return [
        f"Trained at {HASTE:g} times the demo's learning rates and evaluated every 25 steps. *By loss*: the current rule of "
        "**keep** `best`. *By pictures*: the harmonic mean of likeness and place over 8 images, scored by the demo's judges "
        "instead of a CLIP vision model. The step that is kept is then scored on the benchmark's prompts (harmonic means), by "
        "the same judges; on so few characters, small differences say little.",
        "",
        "| | by loss | by pictures | last step | training, by loss | generating the images for the choice by pictures |",
        "| --- | --- | --- | --- | --- | --- |",
        *lines,
        f"| **mean** | {' | '.join(f'{mean:.2f}' for mean in means)} | | |",
    ]


# ---- a style -----------------------------------------------------------------------------------------------------------------

WORD_ALONE, STYLE = "the plain word", "photo"
"""The row of the superclass without training, and the superclass of the style: what the demo's captions call a picture."""
AT_THE_WORD, HALF, STYLE_SHEET = "the style, keys at the word", "the style, keys at the word, half the strength", "style.png"
STYLED: dict[str, tuple[dict[str, object] | None, dict[str, float]]] = {
    WORD_ALONE: (None, {}),
    "the style": (None, {}),
    AT_THE_WORD: ({"lock": "word"}, {}),
    HALF: ({"lock": "word"}, {"strength": 0.5}),
    "the style, keys at the word as learned": ({"lock": "word"}, {"key_lock": 0.0}),
}
"""Maps a row to what its training differs in, and to the settings with which it is used."""
SCENES = (("monster", 1), ("robot", 2), ("plant", 3), ("blob", 4), ("monster", 5), ("robot", 6))


def sepia(image: Image.Image) -> Image.Image:
    """Return a picture in shades of brown."""
    grey = np.asarray(image.convert("L"), np.float32)[..., None] / 255
    return Image.fromarray((255 * grey ** np.array([0.7, 1.0, 1.6])).round().astype(np.uint8))


def styled(shop: Workshop) -> tuple[tuple[str, ...], list[str]]:
    """Write the pictures in the style into the input folder, and return their names and captions."""
    names, captions = [], []
    for i, (kind, number) in enumerate(SCENES):
        one, place = make_pictures.individual(kind, "development", number), world.PLACES[i]
        mouth = next(iter(MOODS[kind].values()))[0]
        picture, _ = world.compose([world.Standing(one.picture(mouth, SIDE * 3 // 2))], place, random.Random(i), SIDE)
        names.append(f"options-style-{i}.png")
        sepia(picture).save(shop.lab.server.base / "input" / names[-1])
        captions.append(f"a {{}} of a {kind} {place}")
    return tuple(names), captions


def run_style(shop: Workshop) -> bool:
    """Measure a look of pictures: all in shades of brown; then draw the sheet."""

    def measured(name: str) -> dict:
        file, settings = style_file(shop, name), STYLED[name][1]
        asked = [(kind, place) for kind in ("robot", "monster", "plant", "blob") for place in PLACES[:3]]
        seen = torch.cat(
            drawn(shop, file, tuple(f"a {{}} of a {kind} {place}" for kind, place in asked), STYLE, seeds=2, **settings)
        )
        kinds = [kind for kind, _ in asked for _ in range(2)]
        said = shop.lab.judges.say("kind", seen).best()
        return {"kind": float(np.mean([a == b for a, b in zip(said, kinds, strict=True)])), "off the browns": off_sepia(seen)}

    return all(kept(shop, f"style/{name}", lambda n=name: measured(n)) for name in STYLED) and style_sheet(shop)


def style_file(shop: Workshop, name: str) -> Path | None:
    """Return the file of one of STYLED, None for the superclass; train it if there is none."""
    if name == WORD_ALONE:
        return None
    (widgets, _), (pictures, captions) = STYLED[name], styled(shop)
    templates = "\n".join(f"a {{}} of a {kind}" for kind in ("monster", "robot"))
    options, lock = {"captions": "\n".join(captions), "templates": templates}, (widgets or {}).get("lock")
    return Teaching(f"style-{lock}" if lock else "style", STYLE, pictures, False, widgets, options).taught(shop)


def style_sheet(shop: Workshop) -> bool:
    """Draw the sheet of the style unless there is one: its training pictures, and the same prompts without and with it."""
    if (RESULTS / STYLE_SHEET).exists():
        return True
    asked = tuple(f"a {{}} of a {kind} {place}" for kind in ("robot", "monster", "plant") for place in PLACES[:2])
    pictures, _ = styled(shop)
    rows = {"training\npictures": [read(shop.lab.server.base / "input" / name) for name in pictures]}
    for title, name in (("superclass", WORD_ALONE), ("style", AT_THE_WORD), ("half the\nstrength", HALF)):
        rows[title] = [each[0] for each in drawn(shop, style_file(shop, name), asked, STYLE, seeds=1, **STYLED[name][1])]
    plots.sheet(rows, ["", *([""] * (len(asked) - 1))], RESULTS / STYLE_SHEET)
    return True


def off_sepia(images: Tensor) -> float:
    """Return how far pixels are from the browns of their own lightness, in 0…1: 0 for pictures in the style."""
    grey = (images * torch.tensor([0.299, 0.587, 0.114])).sum(-1, keepdim=True)
    # The lightness that a brown of this grey came from, by a table of all.
    source = torch.linspace(0, 1, 256)[:, None] ** torch.tensor([0.7, 1.0, 1.6])
    of = (source * torch.tensor([0.299, 0.587, 0.114])).sum(-1)
    nearest = torch.searchsorted(of, grey.squeeze(-1).contiguous()).clamp(max=255)
    return float((images - source[nearest]).abs().mean())


def style_page(store: Store) -> list[str]:
    """Return the page's lines on a style."""
    found = {name: scores for name in STYLED if (scores := store.kept.get(f"style/{name}"))}
    if not found:
        return []
    return [
        f"Six pictures in shades of brown, each of a different character in a different place; superclass `{STYLE}`, no masks, "
        "captions such as *a <it> of a robot at night*. 12 prompts, 2 seeds. *Distance*: how far pixels are from the brown of the "
        "same lightness, from 0 to 1. *Kind*: the share of images that show the kind of character asked for.",
        "",
        "| | distance | kind |",
        "| --- | --- | --- |",
        *(f"| {name} | {scores['off the browns']:.3f} | {100 * scores['kind']:.0f}% |" for name, scores in found.items()),
        "",
        f"![Six training pictures in the style; prompts with the superclass; the same prompts with the style]({STYLE_SHEET})",
    ]


PARTS: dict[str, tuple[str, Callable[[Workshop], bool], Callable[[Store], list[str]]]] = {
    "captions": ("Captions", run_captions, captions_page),
    "shapes": ("Pictures in their own shape", run_shapes, shapes_page),
    "choice": ("Choosing the best step", run_choice, choice_page),
    "style": ("A style", run_style, style_page),
}


def main() -> None:
    """Measure the requested parts and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all of them, if none is named")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing new after so long")
    options = parser.parse_args()
    store = Store(RESULTS / "options.json")
    with workshop(store) as shop:
        shop.until = time.time() + 60 * options.minutes
        for name in options.parts or PARTS:
            PARTS[name][1](shop)
    report(store)


def report(store: Store) -> None:
    """Write the page with everything measured so far."""
    page = ["# Training Options", "", "Written by `python -m benchmarks.fidelity.options`; development characters, seed 0.", ""]
    for title, _, lines in PARTS.values():
        told = lines(store)
        if told:
            page += [f"## {title}", "", *told, ""]
    (RESULTS / "options.md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
