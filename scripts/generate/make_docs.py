"""Run workflows and create the documentation's pictures: `python -m scripts.generate.make_docs [NAME ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from scripts.generate import foreign_file
from scripts.generate.make_workflows import MONSTER
from scripts.harness.demo_job import PROMPTS, read, tile, width_for
from scripts.harness.server import Server
from scripts.harness.workflow import NEVER, find_node, find_nodes, set_widget, to_prompt
from scripts.setup import bootstrap, steps

PICTURES = bootstrap.ROOT / "web" / "docs" / "pictures"
SIDE, MARGIN, LABEL = 192, 8, 24


class Press:
    """Runs workflows on a server and returns the images they write."""

    def __init__(self, server: Server) -> None:
        self.server, self.info = server, server.object_info()

    def run(
        self, name: str, *shown: str, changes: dict[tuple[str, str], object] | None = None, kind: str = "output", without: str = ""
    ) -> list[Path]:
        """Run one of the pack's workflows.

        Args:
            name: The workflow.
            shown: Titles or classes of the nodes whose images are returned.
            changes: Widget values to set, by node (title or class) and widget name.
            kind: "output" for saved images, "temp" for previewed ones.
            without: Title or class of a node to mute.

        Returns:
            The image files of all nodes `shown`.
        """
        workflow = read(name)
        for (node, widget), value in (changes or {}).items():
            set_widget(workflow, node, widget, value, self.info)
        if without:
            find_node(workflow, without)["mode"] = NEVER
        history = self.server.run(to_prompt(workflow, self.info))
        named = [node for name in shown for node in find_nodes(workflow, name)]
        return [path for node in named for path in self.server.outputs(history, node["id"], kind)]

    def use(self, concept: str, prompt: str, seed: int, **settings: float) -> Path:
        """Generate an image with a concept, by the workflow use_concepts; it is twice as wide if the prompt is for two things."""
        changes = {("PerfusionLoadConcept", "concept_name"): concept, ("Prompt", "text"): prompt, ("KSampler", "seed"): seed}
        changes |= {("EmptyLatentImage", "width"): width_for(prompt)}
        changes |= {("PerfusionConceptSettings", name): value for name, value in settings.items()}
        return self.run("use_concepts", "SaveImage", changes=changes)[0]


def main() -> int:
    """Create all pictures, or those named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *(draw.__name__ for draw in DRAWN)], help="all of them, if none is named")
    names = parser.parse_args().names
    with Server(bootstrap.locate()) as server:
        press = Press(server)
        for draw in (each for each in DRAWN if not names or each.__name__ in names):
            steps.say(f"  {draw.__name__}.png")
            draw(press).save(PICTURES / f"{draw.__name__}.png", optimize=True)
    return 0


def in_short(press: Press) -> Image.Image:
    """The README's picture: the training pictures, and the concept in other places, its keys learned at the word."""
    widgets = {("PerfusionTrain", "lock"): "word", ("PerfusionSaveConcept", "filename_prefix"): "in-short"}
    press.run("train_a_concept", changes=widgets)
    concept = max((press.server.base / "models" / "perfusion").glob("in-short_*.safetensors")).name
    given = [press.server.base / "input" / f"monster-{i}.png" for i in range(4)]
    labels = ["on the beach", "in the snow", "sad, at night", "with a balloon", "under water", "and a robot"]
    prompts = [*PROMPTS[:5], "a photo of a {} and a robot on the beach"]
    drawn = [press.use(concept, prompt.format("<my-monster>"), 1, bias=0.5) for prompt in prompts]
    return before_and_after(given, labels, drawn)


def before_and_after(given: list[Path], labels: list[str], drawn: list[Path]) -> Image.Image:
    """Lay out four pictures at the left, and six images with their labels at the right, the last one twice as wide."""
    tall, font = 144, ImageFont.load_default(15)
    left = 2 * (tall + MARGIN) + 64
    page = Image.new("RGB", (left + 4 * (tall + MARGIN) + MARGIN, 2 * (tall + LABEL + MARGIN) + LABEL), "white")
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, 4), "four pictures of one monster", "black", font)
    pen.text((left, 4), "a photo of a <my-monster> ...", "black", font)
    for i, path in enumerate(given):
        page.paste(tile(path, tall), (MARGIN + i % 2 * (tall + MARGIN), LABEL + i // 2 * (tall + LABEL + MARGIN)))
    middle = left - 40, page.height // 2
    pen.polygon([(middle[0] - 12, middle[1] - 16), (middle[0] + 16, middle[1]), (middle[0] - 12, middle[1] + 16)], "black")
    for i, (path, label) in enumerate(zip(drawn, labels, strict=True)):
        place = left + i % 4 * (tall + MARGIN), LABEL + i // 4 * (tall + LABEL + MARGIN)
        page.paste(tile(path, tall), place)
        pen.text((place[0], place[1] + tall + 2), label, "black", ImageFont.load_default(13))
    return page


def compare_settings(press: Press) -> Image.Image:
    """The grid of Compare Settings."""
    changes = {("PerfusionLoadConcept", "concept_name"): MONSTER, ("Prompt", "text"): "a photo of a <demo-monster> on the grass"}
    return Image.open(press.run("compare_settings", "The grid", changes=changes)[0])


def find_the_bias(press: Press) -> Image.Image:
    """The chart of Find Bias."""
    return Image.open(press.run("find_the_bias", "PerfusionAutoBias", kind="temp")[0])


def import_a_concept(press: Press) -> Image.Image:
    """The plain word, the demo's concept imported from another implementation's file, and the original concept."""
    base, rows = press.server.base, []
    foreign_file.write(base, base / "models" / "perfusion" / MONSTER, foreign_file.FOREIGN)
    for seed in (1, 2):
        plain, original = (press.use(MONSTER, f"a photo of a {word} on the grass", seed) for word in ("monster", "<demo-monster>"))
        (imported,) = press.run("import_a_concept", "SaveImage", changes={("KSampler", "seed"): seed})
        rows.append([plain, imported, original])
    return sheet(rows, ["the plain word", "imported", "the original"])


def export_a_concept(press: Press) -> Image.Image:
    """The concept with its gate, and without one as in its LoRA; in prompts with and without its trigger word."""
    rows = []
    for word in ("<demo-monster>", "monster", "robot"):
        text = f"a photo of a {word} on the grass"
        changes = {("PerfusionLoadConcept", "concept_name"): MONSTER}
        changes |= {(title, "text"): text for title in ("The concept", "As the LoRA will be")}
        rows.append(press.run("export_a_concept", "SaveImage", changes=changes))
    return sheet(rows, ["the concept", "as the LoRA is"])


def teach_a_word_alone(press: Press) -> Image.Image:
    """A word that was trained without an edit, beside the plain word and the full concept."""
    press.run("teach_a_word_alone")
    taught = max((press.server.base / "models" / "perfusion").glob("monster-word_*.safetensors"))
    ways = {"monster": MONSTER, "<monster-word>": taught.name, "<demo-monster>": MONSTER}
    places = ("on the grass", "at night", "in the snow")
    rows = [[press.use(name, f"a photo of a {word} {place}", 1) for word, name in ways.items()] for place in places]
    return sheet(rows, ["the plain word", "the word alone", "the whole concept"])


def lock_keys_globally(press: Press) -> Image.Image:
    """Local and global lock, beside the plain word, for two seeds."""
    rows = []
    for seed in (1, 2):
        changes: dict[tuple[str, str], object] = {(title, "seed"): seed for title in ("Local lock", "Global lock")}
        plain = changes | {("Prompt, local lock", "text"): "a photo of a monster in the snow"}
        rows.append(
            press.run("lock_keys_globally", "Picture: Local lock", changes=plain)
            + press.run("lock_keys_globally", "Picture: Local lock", "Picture: Global lock", changes=changes)
        )
    return sheet(rows, ["a monster in the snow", "local lock", "global lock"])


def see_attention(press: Press) -> Image.Image:
    """The sheet of Show Attention."""
    return Image.open(press.run("see_attention", "Where the words looked")[0])


def train_without_painting(press: Press) -> Image.Image:
    """The demo's pictures and the masks that Find Object finds in them; the training is cut to a single step."""
    changes: dict[tuple[str, str], object] = {("PerfusionTrain", "steps"): 1, ("PerfusionTrain", "batch"): 1}
    given = {"changes": changes, "kind": "temp", "without": "PerfusionSaveConcept"}
    found = press.run("train_without_painting", "PerfusionFindObject", **given)
    pictures = [press.server.base / "input" / f"monster-{i}.png" for i in range(4)]
    return sheet([pictures, found], ['the pictures, and where "monster" is in them, read from the base\'s own attention'])


def train_with_captions(press: Press) -> Image.Image:
    """The sheet of a whole training: a column for each step shown, a row for each preview prompt."""
    (path,) = press.run("train_with_captions", "The concept, step by step", kind="temp")
    # Few colours keep the file small.
    return Image.open(path).convert("RGB").quantize(40, kmeans=3)


def inspect_gates(press: Press) -> Image.Image:
    """The image of Inspect Gates."""
    return Image.open(press.run("inspect_gates", "Each concept's gate at each word")[0])


def two_places(press: Press) -> Image.Image:
    """Two concepts with their regions and without, and the plain words, for two seeds."""
    concepts, plain = "a <demo-monster> and a <demo-robot> on the grass", "a monster and a robot on the grass"
    rows = []
    for workflow, words in (("two_places", concepts), ("use_two_concepts", concepts), ("two_places", plain)):
        changes = [{("KSampler", "seed"): seed, ("Prompt", "text"): words} for seed in (1, 2)]
        rows.append([press.run(workflow, "SaveImage", changes=each)[0] for each in changes])
    return sheet(rows, ["two concepts, each with its region; without regions; the plain words, same seeds"])


def schedule_a_concept(press: Press) -> Image.Image:
    """A concept that acts in the whole run, only in its later part, and with a rising bias, for two seeds."""
    titles = ["All the way", "From 0.3 on", "A bias that rises"]
    saved = [f"Picture: {title}" for title in titles]
    rows = [press.run("schedule_a_concept", *saved, changes={(title, "seed"): seed for title in titles}) for seed in (1, 2)]
    # Few colours keep the file small.
    return sheet(rows, ["all the way", "from 0.3 on", "a bias that rises"]).quantize(40, kmeans=3)


def keep_layout(press: Press) -> Image.Image:
    """The plain word's image, the concept in its layout, and the concept without it."""
    titles = ["The plain word", "The concept in its layout", "The concept by itself"]
    saved = [f"Picture: {title}" for title in titles]
    rows = [press.run("keep_layout", *saved, changes={(title, "seed"): seed for title in titles}) for seed in (1, 2)]
    return sheet(rows, ["the plain word", "concept, its layout", "concept by itself"])


def keep_layout_of_a_picture(press: Press) -> Image.Image:
    """A picture, its reconstruction from the noise it was inverted to, and the concept in its layout."""
    drawn = press.run("keep_layout_of_a_picture", "Picture: The picture again", "Picture: The concept in its layout")
    row = [press.server.base / "input" / "plain-monster.png", *drawn]
    return sheet([row], ["the picture", "drawn from its noise", "concept, its layout"])


def sheet(rows: list[list[Path]], labels: list[str]) -> Image.Image:
    """Draw rows of pictures, all of the same shape, under a label for each column; a single label may span the row."""
    tiles = [[tile(path, SIDE) for path in row] for row in rows]
    across = tiles[0][0].width + MARGIN
    drawn = Image.new("RGB", (MARGIN + max(len(row) for row in rows) * across, LABEL + len(rows) * (SIDE + MARGIN)), "white")
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(15)
    for i, label in enumerate(labels):
        pen.text((MARGIN + i * across, 4), label, "black", font)
    for y, row in enumerate(tiles):
        for x, picture in enumerate(row):
            drawn.paste(picture, (MARGIN + x * across, LABEL + y * (SIDE + MARGIN)))
    return drawn


DRAWN: list[Callable[[Press], Image.Image]] = [
    in_short,
    compare_settings,
    find_the_bias,
    import_a_concept,
    export_a_concept,
    teach_a_word_alone,
    lock_keys_globally,
    see_attention,
    train_without_painting,
    train_with_captions,
    inspect_gates,
    two_places,
    schedule_a_concept,
    keep_layout,
    keep_layout_of_a_picture,
]

if __name__ == "__main__":
    steps.exit_with(main)
