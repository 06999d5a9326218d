"""The demo's job: train a concept on four pictures, generate with it, and lay the results side by side.

Runs inside the environment that the set-up made. It submits the very workflows that users drag onto the page.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from scripts import bootstrap, steps
from scripts.server import GraphError, Server
from scripts.workflow import ALWAYS, BYPASS, find_node, set_widget, to_prompt

WORKFLOWS = bootstrap.ROOT / "workflows"
PICTURES = "teddy-*.png"
PREFIX = "teddy"
SUPERCLASS = "teddy"
TRIGGER = "<my-teddy>"
PROMPTS = (
    "a photo of a {} on the grass",
    "a photo of a {} at night",
    "a photo of a {} in the snow",
    "a photo of a {} on a blue background",
    "a {} and an apple on a yellow background",
)
SEEDS = (1, 2)
COLUMNS = ("the word, no concept", "the word, concept applied", "the concept")

# What the workflows' nodes and widgets are called.
LOAD, LOAD_WIDGET = "PerfusionLoadConcept", "concept_name"
APPLY = "PerfusionApply"
POSITIVE = "Prompt"
SAMPLER, SEED_WIDGET = "KSampler", "seed"

SIDE, MARGIN, LABEL_WIDTH, HEADER = 128, 8, 250, 24


def main() -> int:
    """Start the server, train, generate, write the contact sheet, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--setup-seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    setup = bootstrap.locate()
    with Server(setup, arguments.port) as server:
        try:
            with timed("Training the concept") as training:
                concept = train(server)
            with timed("Generating with it") as sampling:
                rows = generate(server, concept)
        except GraphError as error:
            raise steps.SetupError(f"expected the workflow to run, but {error}; see {server.log_file}.") from None
    sheet = setup.base / "output" / "contact_sheet.png"
    contact_sheet(sorted((setup.base / "input").glob(PICTURES)), rows).save(sheet)
    same = sum(pixels(word) == pixels(applied) for _, (words, kept, _) in rows for word, applied in zip(words, kept, strict=True))
    steps.say(
        f"Pictures of the plain word that the concept leaves as they are, to the last bit: {same} of {len(rows) * len(SEEDS)}"
    )
    steps.say(f"Contact sheet: {sheet}")
    steps.say(f"Concept: {concept} ({concept.stat().st_size / 1024:.1f} KB)")
    steps.say(f"Times: set-up {arguments.setup_seconds:.0f} s, training {training[0]:.0f} s, sampling {sampling[0]:.0f} s")
    return 0


def train(server: Server) -> Path:
    """Run the training workflow as it is; return the concept file that it saved."""
    folder = server.base / "models" / "perfusion"
    before = set(folder.glob(f"{PREFIX}*"))
    server.run(to_prompt(read("train_a_concept"), server.object_info()))
    saved = set(folder.glob(f"{PREFIX}*.safetensors")) - before
    if len(saved) != 1:
        raise steps.SetupError(f"expected the training workflow to save one concept in {folder}, but it saved {len(saved)}.")
    return saved.pop()


def generate(server: Server, concept: Path) -> list[tuple[str, list[list[Path]]]]:
    """For each prompt its text, and for each column the pictures of all seeds."""
    info = server.object_info()
    workflow = read("use_concepts")
    set_widget(workflow, LOAD, LOAD_WIDGET, concept.name, info)

    def draw(prompt: str, mode: int, seed: int) -> Path:
        one = copy.deepcopy(workflow)
        find_node(one, APPLY)["mode"] = mode
        set_widget(one, POSITIVE, "text", prompt, info)
        set_widget(one, SAMPLER, SEED_WIDGET, seed, info)
        return server.outputs(server.run(to_prompt(one, info)))[-1]

    rows = []
    for prompt in PROMPTS:
        word, name = prompt.format(SUPERCLASS), prompt.format(TRIGGER)
        steps.say(f"  {name}")
        kinds = ((word, BYPASS), (word, ALWAYS), (name, ALWAYS))
        rows.append((prompt.format("…"), [[draw(text, mode, seed) for seed in SEEDS] for text, mode in kinds]))
    return rows


def contact_sheet(pictures: list[Path], rows: list[tuple[str, list[list[Path]]]]) -> Image.Image:
    """The training pictures on top; below them a row for each prompt, and in it a group of pictures for each column."""
    group = len(SEEDS) * SIDE + MARGIN
    width = LABEL_WIDTH + len(COLUMNS) * (group + MARGIN) + MARGIN
    top = SIDE + 2 * MARGIN + HEADER
    sheet = Image.new("RGB", (width, top + HEADER + len(rows) * (SIDE + MARGIN) + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    lefts = [LABEL_WIDTH + column * (group + MARGIN) for column in range(len(COLUMNS))]
    pen.text((MARGIN, MARGIN + SIDE // 2), "the training pictures", "black", font)
    for i, picture in enumerate(pictures):
        sheet.paste(tile(picture), (LABEL_WIDTH + i * (SIDE + MARGIN), MARGIN))
    for left, name in zip(lefts, COLUMNS, strict=True):
        pen.text((left, top), name, "black", font)
    for row, (label, groups) in enumerate(rows):
        y = top + HEADER + row * (SIDE + MARGIN)
        pen.multiline_text((MARGIN, y + SIDE // 3), wrap(label, LABEL_WIDTH - 2 * MARGIN, font), "black", font)
        for left, drawn in zip(lefts, groups, strict=True):
            for i, picture in enumerate(drawn):
                sheet.paste(tile(picture), (left + i * SIDE, y))
    return sheet


def tile(picture: Path, side: int = SIDE) -> Image.Image:
    """A picture at the size of a sheet's tiles."""
    with Image.open(picture) as image:
        return image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def pixels(picture: Path) -> bytes:
    """What a picture shows."""
    with Image.open(picture) as image:
        return image.convert("RGB").tobytes()


def wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Break a text into lines no wider than `width`."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def read(name: str) -> dict:
    """Read one of the pack's workflows."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


@contextmanager
def timed(what: str) -> Iterator[list[float]]:
    """A step whose duration is also kept, in the list that this gives."""
    seconds: list[float] = []
    start = time.monotonic()
    with steps.step(what):
        yield seconds
    seconds.append(time.monotonic() - start)


if __name__ == "__main__":
    steps.exit_with(main)
