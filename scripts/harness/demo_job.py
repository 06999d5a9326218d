"""Run the demo: train a concept on four pictures, generate with it, and lay out the results side by side.

Runs inside the environment that the set-up created. It submits the same workflows that users drag onto the page.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from demo.world import SIDE
from scripts.harness.server import GraphError, Server
from scripts.harness.workflow import ALWAYS, BYPASS, find_node, set_widget, to_prompt
from scripts.setup import bootstrap, steps

WORKFLOWS = bootstrap.ROOT / "workflows"
PICTURES = "monster-*.png"
PREFIX = "monster"
SUPERCLASS = "monster"
TRIGGER = "<my-monster>"
OTHER = "<demo-robot>"
PROMPTS = (
    "a photo of a {} on the beach",
    "a photo of a {} in the snow",
    "a photo of a sad {} at night",
    "a photo of a {} holding a balloon in the desert",
    "a photo of a {} under water",
    "a photo of a {} and a robot on the grass",
)
BOTH = f"a photo of a {TRIGGER} and a {OTHER} in the snow"
"""The prompt with two concepts that were trained separately."""
EACH, SEED = 2, 1
"""Number of images for each prompt (twice as many for the prompt with two concepts), and the seed used for all of them."""
COLUMNS = ("the word, no concept", "the word, concept applied", "the concept")

# Node classes, node titles and widget names in the workflows.
LOAD, LOAD_WIDGET = "PerfusionLoadConcept", "concept_name"
APPLY = "PerfusionApply"
POSITIVE = "Prompt"
SAMPLER, SEED_WIDGET = "KSampler", "seed"
LATENT, COUNT_WIDGET = "EmptyLatentImage", "batch_size"

TALL, MARGIN, LABEL_WIDTH, HEADER = 96, 8, 190, 24


class Row(NamedTuple):
    """A prompt and its images."""

    label: str
    groups: list[list[Path]]
    """The images of each column."""


def main() -> int:
    """Start the server, train, generate, write the contact sheet, and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--setup-seconds", type=float, default=0.0)
    arguments = parser.parse_args()
    setup = bootstrap.locate()
    with Server(setup, arguments.port) as server:
        try:
            with timed("Training the concept") as training:
                concept = taught(server)
            with timed("Generating with it") as sampling:
                rows = generate(server, concept)
                both = pair(server, concept)
        except GraphError as error:
            raise steps.SetupError(f"expected the workflow to run, but {error}; see {server.log_file}.") from None
    sheet = setup.base / "output" / "contact_sheet.png"
    contact_sheet(sorted((setup.base / "input").glob(PICTURES)), rows, both).save(sheet)
    same = sum(pixels(word) == pixels(applied) for row in rows for word, applied in zip(*row.groups[:2], strict=True))
    steps.say(f"Pictures of the plain word that the concept leaves as they are, to the last bit: {same} of {len(rows) * EACH}")
    steps.say(f"Contact sheet: {sheet}")
    steps.say(f"Concept: {concept} ({concept.stat().st_size / 1024:.1f} KB)")
    steps.say(f"Times: set-up {arguments.setup_seconds:.0f} s, training {training[0]:.0f} s, sampling {sampling[0]:.0f} s")
    return 0


def taught(server: Server) -> Path:
    """Return the demo's concept file, reusing one that an earlier run trained from the same workflow, pictures, base and code."""
    folder = server.base / "models" / "perfusion"
    sources = [
        WORKFLOWS / "train_a_concept.json",
        *sorted((server.base / "input").glob(PICTURES)),
        bootstrap.ROOT / "demo" / "base.bin",
    ]
    sources += sorted(path for part in ("perfusion_core", "nodes") for path in (bootstrap.ROOT / part).rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    kept = folder / f"{PREFIX}-of-the-demo-{digest}.safetensors"
    if kept.exists():
        steps.say(f"  reusing the concept of an earlier run; delete {kept} to train it again")
        return kept
    for stale in folder.glob(f"{PREFIX}-of-the-demo-*.safetensors"):
        stale.unlink()
    shutil.copyfile(train(server), kept)
    return kept


def train(server: Server) -> Path:
    """Run the training workflow unchanged and return the concept file that it saved."""
    folder = server.base / "models" / "perfusion"
    before = set(folder.glob(f"{PREFIX}*"))
    server.run(to_prompt(read("train_a_concept"), server.object_info()))
    saved = set(folder.glob(f"{PREFIX}*.safetensors")) - before
    if len(saved) != 1:
        raise steps.SetupError(f"expected the training workflow to save one concept in {folder}, but it saved {len(saved)}.")
    return saved.pop()


def generate(server: Server, concept: Path) -> list[Row]:
    """Generate the images of all prompts for all columns."""
    info = server.object_info()
    workflow = read("use_concepts")
    set_widget(workflow, LOAD, LOAD_WIDGET, concept.name, info)

    def draw(prompt: str, mode: int) -> list[Path]:
        one = copy.deepcopy(workflow)
        find_node(one, APPLY)["mode"] = mode
        set_widget(one, POSITIVE, "text", prompt, info)
        set_widget(one, LATENT, "width", width_for(prompt), info)
        set_widget(one, LATENT, COUNT_WIDGET, EACH, info)
        set_widget(one, SAMPLER, SEED_WIDGET, SEED, info)
        return server.outputs(server.run(to_prompt(one, info)))[-EACH:]

    rows = []
    for prompt in PROMPTS:
        word, name = prompt.format(SUPERCLASS), prompt.format(TRIGGER)
        steps.say(f"  {name}")
        kinds = ((word, BYPASS), (word, ALWAYS), (name, ALWAYS))
        rows.append(Row(prompt.format("…"), [draw(text, mode) for text, mode in kinds]))
    return rows


def pair(server: Server, concept: Path) -> Row:
    """Generate images with two concepts, each in its region: the one that was just trained and one that ships with the demo."""
    info, workflow = server.object_info(), read("two_places")
    set_widget(workflow, "First concept", LOAD_WIDGET, concept.name, info)
    set_widget(workflow, POSITIVE, "text", BOTH, info)
    steps.say(f"  {BOTH}")
    set_widget(workflow, LATENT, COUNT_WIDGET, 2 * EACH, info)
    set_widget(workflow, SAMPLER, SEED_WIDGET, SEED, info)
    return Row(BOTH, [server.outputs(server.run(to_prompt(workflow, info)))[-2 * EACH :]])


def contact_sheet(pictures: list[Path], rows: list[Row], both: Row) -> Image.Image:
    """Draw the training pictures, then a row for each prompt with a group of images for each column, then the two concepts."""
    wide = 2 * TALL  # the width of an image of two things
    group = EACH * wide + MARGIN
    width = LABEL_WIDTH + len(COLUMNS) * (group + MARGIN) + MARGIN
    top = TALL + 2 * MARGIN + HEADER
    sheet = Image.new("RGB", (width, top + HEADER + (len(rows) + 1) * (TALL + MARGIN) + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)

    def row(y: int, label: str, left: int, pictures: list[Path]) -> None:
        pen.multiline_text((MARGIN, y + TALL // 5), wrap(label, LABEL_WIDTH - 2 * MARGIN, font), "black", font)
        for picture in pictures:
            drawn = tile(picture)
            sheet.paste(drawn, (left, y))
            left += drawn.width + MARGIN // 2

    lefts = [LABEL_WIDTH + column * (group + MARGIN) for column in range(len(COLUMNS))]
    row(MARGIN, "the training pictures", LABEL_WIDTH, pictures)
    for left, name in zip(lefts, COLUMNS, strict=True):
        pen.text((left, top), name, "black", font)
    for i, (label, groups) in enumerate([*rows, both]):
        for left, drawn in zip(lefts, groups, strict=False):
            row(top + HEADER + i * (TALL + MARGIN), label, left, drawn)
    return sheet


def width_for(prompt: str) -> int:
    """Return the width in pixels of an image for a prompt, which is twice as wide if it asks for two things."""
    return SIDE * (1 + prompt.count(" and a "))


def tile(picture: Path, tall: int = TALL) -> Image.Image:
    """Return a picture scaled to the height of a sheet's tiles."""
    with Image.open(picture) as image:
        return image.convert("RGB").resize((image.width * tall // image.height, tall), Image.Resampling.LANCZOS)


def pixels(picture: Path) -> bytes:
    """Return a picture's RGB pixels, for comparison without file metadata."""
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
    """Report a step and append its duration in seconds to the yielded list."""
    seconds: list[float] = []
    start = time.monotonic()
    with steps.step(what):
        yield seconds
    seconds.append(time.monotonic() - start)


if __name__ == "__main__":
    steps.exit_with(main)
