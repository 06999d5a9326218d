"""Write `workflows/*.json`, with `python -m scripts.make_workflows` in the set-up's environment.

A function here draws each of them; the order of widgets comes from a running server.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from scripts import bootstrap, steps
from scripts.bootstrap import CHECKPOINT
from scripts.drawing import Drawing, Node
from scripts.server import Server

WORKFLOWS = bootstrap.ROOT / "workflows"
TRAINING = {"steps": 380, "batch": 8, "size": 64, "word_rate": 1e-4, "output_rate": 0.06, "train_bias": 0.3, "min_snr": 5.0}
TRAINING |= {"train_temperature": 0.15, "superclass": "teddy", "trigger": "<my-teddy>"}
ALONE = {"steps": 150, "word_rate": 6e-5, "edit_mode": "none", "trigger": "<teddy-word>"}
SETTINGS = {"bias": 0.4, "temperature": 0.15, "strength": 1.0, "trigger": ""}
SAMPLER = {"seed": 1, "steps": 20, "cfg": 4.0, "sampler_name": "ddim", "scheduler": "normal", "denoise": 1.0}


def main() -> int:
    """Write them all."""
    with Server(bootstrap.locate()) as server:
        info = server.object_info()
    for draw in DRAWN:
        drawing = Drawing(draw.__name__, info)
        draw(drawing)
        path = WORKFLOWS / f"{draw.__name__}.json"
        path.write_text(json.dumps(drawing.workflow(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        steps.say(f"  {path.name}")
    return 0


def train_a_concept(sheet: Drawing) -> None:
    """Four pictures and their masks in, a concept file out."""
    training(sheet, "teddy")
    sheet.note(
        "How to",
        """## Teach a concept

1. **Pictures**: load four to ten pictures of one thing. Paint the thing in each with *Open in MaskEditor*, so that backgrounds
stay out of the concept; or disconnect **masks**. The demo's pictures bring their masks.
2. **superclass**: the plain word for what it is. **trigger**: the word that will stand for it, in angle brackets.
3. Queue. The concept is saved to `models/perfusion` and stands in *Load Concept* after a refresh (R).

The numbers here are for the small demo base, which draws 64 pixels. With an SD1.5 checkpoint take **size** 512, **steps** 400,
**word_rate** 0.0003, **output_rate** 0.03, **train_bias** 0.75. A stopped training goes on when the same graph is queued
again.""",
        0,
        560,
        260,
        960,
    )


def use_concepts(sheet: Drawing) -> None:
    """The plain way: load, set, apply, sample."""
    base, model, clip = concept(sheet)
    positive = sheet.add("CLIPTextEncode", 760, 360, 140, "Prompt", clip=clip, text="a photo of a <my-teddy> on the grass")
    draw(sheet, base, model, clip, positive[0], 1170)
    sheet.note(
        "How to",
        """## Use a concept

Write its trigger word where you would write the plain word: `a photo of a <my-teddy> on the grass`. Weights such as
`(<my-teddy>:1.2)` work too.

**bias** decides between likeness and prompt: lower it for more of the concept, raise it for more of the prompt. Several
concepts: join them with *Combine Concepts*, or put one *Apply Concept* after another. With an SD1.5 checkpoint, take an empty
latent of 512 × 512 pixels, **bias** 0.6 and **temperature** 0.15.""",
        0,
        560,
        220,
    )


def teach_a_word_alone(sheet: Drawing) -> None:
    """Textual Inversion: the same pictures in, a word out that edits no layer."""
    training(sheet, "teddy-word", **ALONE)
    sheet.note(
        "How to",
        """## Teach a word alone

With **edit_mode** *none* no layer of the model is edited and the word is all that is learned: Textual Inversion. What you get is
loaded, combined and applied as any concept is; bias and temperature have no say in it.

**initial_word** is what the word starts as: empty for the superclass, another plain word, or `embedding:NAME` of
`models/embeddings`, to go on from an embedding that you have. More words or more vectors to begin with make a longer word.

The numbers here are for the small demo base, which knows eight words and leaves a word alone little room: it hardly changes with
them, and with a **word_rate** of 0.0001 it leaves the teddies for houses. With an SD1.5 checkpoint begin with **size** 512,
**word_rate** 0.0005 to 0.005, **steps** 1000 or more and **min_snr** 0.""",
        0,
        560,
        280,
        960,
    )


# ---- parts that several workflows share --------------------------------------------------------------------------------------


def pictures(sheet: Drawing) -> tuple[Node, Node]:
    """The demo's four pictures and their masks, as batches."""
    loaded = [
        sheet.add("LoadImage", 290 * (i % 2), 270, 320, f"Picture {i + 1}", 180 + 370 * (i // 2), image=f"teddy-{i}.png")
        for i in range(4)
    ]
    images = sheet.add("BatchImagesNode", 640, y=180, **{f"images__image{i}": node[0] for i, node in enumerate(loaded)})
    return images, sheet.add("BatchMasksNode", 640, **{f"masks__mask{i}": node[1] for i, node in enumerate(loaded)})


def training(sheet: Drawing, prefix: str, **changed: object) -> None:
    """The demo's pictures taught to its base with TRAINING, and what comes out saved and shown."""
    base = sheet.add("CheckpointLoaderSimple", 0, ckpt_name=CHECKPOINT)
    images, masks = pictures(sheet)
    settings = TRAINING | changed
    train = sheet.add(
        "PerfusionTrain", 1020, 380, model=base[0], clip=base[1], vae=base[2], images=images[0], masks=masks[0], **settings
    )
    sheet.add("PerfusionSaveConcept", 1460, 360, concept=train[0], filename_prefix=prefix)
    sheet.add("PreviewImage", 1460, 360, 260, "Loss", images=train[1])
    sheet.add("PreviewImage", 1460, 360, 380, "The concept", images=train[2])


def concept(sheet: Drawing, name: str = "teddy_00001.safetensors") -> tuple[Node, tuple, tuple]:
    """A checkpoint with a concept: the checkpoint's node, and the MODEL and CLIP that know it."""
    base = sheet.add("CheckpointLoaderSimple", 0, 340, ckpt_name=CHECKPOINT)
    loaded = sheet.add("PerfusionLoadConcept", 0, 340, 200, concept_name=name)
    chosen = sheet.add("PerfusionConceptSettings", 0, 340, concept=loaded[0], **SETTINGS)
    applied = sheet.add("PerfusionApply", 390, model=base[0], clip=base[1], concept=chosen[0])
    return base, applied[0], applied[1]


def draw(sheet: Drawing, base: Node, model: tuple, clip: tuple, positive: tuple, x: int, **sampler: object) -> tuple[Node, Node]:
    """Sample 64 pixels and save the picture: the nodes of the sampler and of the decoder."""
    negative = sheet.add("CLIPTextEncode", x - 410, 360, 100, "Negative prompt", clip=clip, text="")
    empty = sheet.add("EmptyLatentImage", x - 410, width=64, height=64) if "latent_image" not in sampler else None
    latent = {} if empty is None else {"latent_image": empty[0]}
    settings = SAMPLER | latent | sampler
    sampled = sheet.add("KSampler", x, 300, model=model, positive=positive, negative=negative[0], **settings)
    decoded = sheet.add("VAEDecode", x, 220, samples=sampled[0], vae=base[2])
    sheet.add("SaveImage", x + 350, 360, 400, images=decoded[0], filename_prefix="perfusion")
    return sampled, decoded


DRAWN: list[Callable[[Drawing], None]] = [train_a_concept, use_concepts, teach_a_word_alone]

if __name__ == "__main__":
    steps.exit_with(main)
