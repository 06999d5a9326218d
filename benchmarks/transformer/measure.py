"""Measure concepts on a small transformer of Wan's layout that draws the demo's world, with the judges of the UNet's.

    python -m benchmarks.transformer.measure DIR [--split development]

DIR is the folder that `train` wrote to. Concepts are trained by Train Concept and images generated in a real server, from the
ordinary nodes; see `small_wan` for what takes the place of Wan's text encoder and VAE. Scores are kept in a JSON file, so that an
interrupted run resumes. Writes results/transformer.md and a sheet of images for the test individuals.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.fidelity import characters, plots, sheet
from benchmarks.fidelity.bench import NOTHING
from benchmarks.fidelity.concepts import Concept
from benchmarks.fidelity.methods import Recipe, Use
from benchmarks.fidelity.trials import SEEDS, Prompt, Scores, Store, Trial, Workshop
from benchmarks.lab import RESULTS, open_labs
from benchmarks.transformer.train import MODEL, SHIFT
from demo.individuals import STYLES
from scripts.harness.graphs import Graph, Link
from scripts.setup import bootstrap

VOCABULARY, NODE = "small_wan_vocabulary.model", "SmallWanParts"
"""As in `small_wan`, which only a server can import."""
BIAS = 0.4
SHEET = "transformer.png"
LOCKED, AT_THE_WORD = "keys locked", "keys at the word, half locked"
WAYS: dict[str, tuple[Recipe, Use]] = {
    LOCKED: (Recipe(), Use()),
    AT_THE_WORD: (Recipe(widgets={"lock": "word"}), Use()),
}
"""Maps the name of a row to how its concepts are trained and used."""


class TransformerWorkshop(Workshop):
    """A workshop whose base is the small transformer."""

    def base(self, graph: Graph) -> tuple[Link, Link, Link]:
        """See `Workshop.base`."""
        loaded = graph.add("UNETLoader", unet_name=MODEL, weight_dtype="default")
        shifted = graph.add("ModelSamplingSD3", model=[loaded, 0], shift=SHIFT)
        parts = graph.add(NODE, vae=super().base(graph)[2])
        return [shifted, 0], [parts, 0], [parts, 1]


def individuals(split: str) -> list[Concept]:
    """Return one individual of each kind."""
    return [(f"{split}-0", kind) for kind in STYLES]


def plain(concept: Concept) -> Trial:
    """Return the trial of the plain word."""
    return Trial(concept, None, NOTHING.use, NOTHING.values, characters.prompts(concept))


def taught(concept: Concept, way: str) -> Trial:
    """Return the trial of a concept."""
    recipe, use = WAYS[way]
    return Trial(concept, recipe, use, (BIAS,), characters.prompts(concept))


def rows(store: Store, concepts: Sequence[Concept]) -> Iterator[str]:
    """Yield the rows of the page's table: each way's mean over individuals, prompts and seeds."""

    def means(trials: list[Trial]) -> list[float]:
        found: list[Scores] = [scores for trial in trials if (scores := store.get(trial, trial.values[0]))]
        whole = [np.mean([getattr(each, name) for each in found]) for name in ("identity", "likeness", "text")]
        recognised, likeness, text = map(float, whole)
        return [recognised, 2 * likeness - recognised, text, 2 * likeness * text / (likeness + text)]

    yield f"| superclass, no training | – | – | {means([plain(each) for each in concepts])[2]:.2f} | – |"
    for way in WAYS:
        trials = [taught(each, way) for each in concepts]
        if not any(store.missing(trial) for trial in trials):
            yield f"| {way} | {' | '.join(f'{each:.2f}' for each in means(trials))} |"


def shown(shop: Workshop, concepts: Sequence[Concept], out: Path) -> None:
    """Draw the sheet: for each individual a training picture, then an image of each prompt."""
    strips = {}
    for way in WAYS:
        for concept in concepts:
            trial = taught(concept, way)
            (drawn,) = shop.draw(trial, trial.values)
            strips[f"{concept[1]}:\n{way.replace(', ', chr(10))}"] = [
                *sheet.taught_from(shop, concept, 1),
                *(each[0] for each in drawn),
            ]
    plots.sheet(strips, ["a training picture", *map(asked, characters.prompts(concepts[0]))], out)


def asked(prompt: Prompt) -> str:
    """Return the heading of a prompt's column; not every kind is asked for a mood."""
    return "\n".join(filter(None, (prompt.place, prompt.mood, "a balloon" * prompt.carries, "a second one" * prompt.wide)))


def furnish(base: Path, folder: Path) -> None:
    """Give a server's base directory the model, the vocabulary and the nodes."""
    for name, kind in ((MODEL, "diffusion_models"), (VOCABULARY, "text_encoders")):
        target = base / "models" / kind / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target)
    shutil.copyfile(Path(__file__).with_name("small_wan.py"), base / "custom_nodes" / "small_wan.py")


def main() -> None:
    """Measure, print the page, and write it for the test individuals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="that of `train`")
    parser.add_argument("--split", choices=("test", "development"), default="test")
    parser.add_argument("--servers", type=int, default=os.cpu_count() or 1, help="so many in parallel")
    options = parser.parse_args()
    setup = bootstrap.locate()
    test, concepts = options.split == "test", individuals(options.split)
    store = Store(RESULTS / "transformer.json" if test else bootstrap.CACHE / "transformer-development.json")
    # A folder for each model, so that no concept of another one is used.
    base = bootstrap.stocked_base(setup, bootstrap.CACHE / f"transformer-{store.belongs_to(options.folder / MODEL)}")
    furnish(base, options.folder)
    with open_labs(setup, base, options.servers) as labs:
        shop = TransformerWorkshop(labs, characters.CharacterBed(labs[0].judges), store)
        shop.run([*map(plain, concepts), *(taught(each, way) for way in WAYS for each in concepts)])
        shown(shop, concepts, RESULTS / SHEET if test else bootstrap.CACHE / SHEET)
    lines = page(store, concepts)
    print("\n".join(lines))
    if test:
        (RESULTS / "transformer.md").write_text("\n".join(lines), encoding="utf-8")


def page(store: Store, concepts: Sequence[Concept]) -> list[str]:
    """Return the page's lines."""
    return [
        "# A small transformer of Wan's architecture",
        "",
        "Written by `python -m benchmarks.transformer.measure`; `python -m benchmarks.transformer.train` trains the model.",
        "",
        f"{len(concepts)} individuals that the model never saw, one of each kind, with "
        f"{len(characters.prompts(concepts[0]))} prompts and {SEEDS} seeds each, at a bias of {BIAS:g}. Recognised: closest to "
        "that individual among 240 of its kind. Details: the share of the individual's features that are there. Text: the share of "
        "what the prompt says.",
        "",
        "| | recognised | details | text | harmonic mean |",
        "| --- | --- | --- | --- | --- |",
        *rows(store, concepts),
        "",
        f"![For each individual a training picture and an image of each prompt]({SHEET})",
        "",
    ]


if __name__ == "__main__":
    main()
