"""Write `workflows/*.json`: `python -m scripts.generate.make_workflows` in the set-up's environment.

One function here builds each of them; the order of widgets comes from a running server.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from demo.make_pictures import PLACES
from demo.world import SIDE
from scripts.generate.drawing import Drawing, Node
from scripts.harness.server import Server
from scripts.setup import bootstrap, steps
from scripts.setup.bootstrap import CHECKPOINT

WORKFLOWS = bootstrap.ROOT / "workflows"
TRAINING = {"steps": 300, "batch": 4, "size": SIDE, "word_rate": 1e-3, "output_rate": 1.0, "train_bias": 0.4, "min_snr": 5.0}
# No mirrored pictures: all characters of the demo's world face the same way.
TRAINING |= {"train_temperature": 0.15, "flip": 0.0, "superclass": "monster", "trigger": "<my-monster>"}
ALONE = {"steps": 150, "word_rate": 3e-3, "edit_mode": "none", "trigger": "<monster-word>"}
SETTINGS = {"bias": 0.4, "temperature": 0.15, "strength": 1.0, "trigger": ""}
TOGETHER = SETTINGS | {"bias": 0.55}
"""The settings of each of two concepts in one image without regions. A higher bias keeps each at its own word."""
MONSTER, ROBOT = "demo-monster.safetensors", "demo-robot.safetensors"
SHORT = {"PerfusionTrain": {"steps": 2, "batch": 1}, "KSampler": {"steps": 2}, "PerfusionSweep": {"steps": 1}}
"""Widget values, by node class, that make a workflow fast enough for a trial run."""
SD15_PREFIX = "sd15_"
SD15 = {
    "CheckpointLoaderSimple": {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"},
    "LoadImage": {"image": "example.png"},
    "PerfusionConceptInWorkflow": {"data": ""},
    "PerfusionTrain": {
        "size": 512,
        "batch": 8,
        "steps": 400,
        "word_rate": 3e-4,
        "output_rate": 0.03,
        "min_snr": 0.0,
        "flip": 0.5,
        "train_bias": 0.75,
        "train_temperature": 0.1,
    },
    "PerfusionFindObject": {"size": 512},
    "PerfusionAutoBias": {"size": 512},
    "PerfusionConceptSettings": {"bias": 0.6},
    "PerfusionSweep": {"biases": "0.45, 0.6, 0.75", "values": "0.1, 0.15, 0.2", "steps": 25, "cfg": 7.0},
    "KSampler": {"steps": 25, "cfg": 7.0},
}
"""Widget values, by node class, that replace the demo base's settings for an SD1.5 checkpoint."""
SD15_TOGETHER = 0.75
"""The bias of each of two concepts in one image without regions, for an SD1.5 checkpoint; not measured."""
SD15_ALONE = {"steps": 1000, "word_rate": 1e-3}
SAMPLER = {"seed": 1, "steps": 10, "cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "normal", "denoise": 1.0}


def main() -> int:
    """Write all workflows."""
    with Server(bootstrap.locate()) as server:
        info = server.object_info()
    for draw in DRAWN:
        for prefix, change in (("", None), (SD15_PREFIX, for_sd15)):
            drawing = Drawing(prefix + draw.__name__, info, change)
            draw(drawing)
            if change:
                drawing.note("For SD1.5", SD15_NOTE, 0, 420, 200, -250)
            write(drawing)
    for kind in TRANSFORMERS:
        for name, draw in (("train_a_concept", train_transformer), ("use_concepts", use_transformer)):
            drawing = Drawing(f"{kind.name}_{name}", info, of_the_user)
            draw(drawing, kind)
            write(drawing)
    return 0


def write(drawing: Drawing) -> None:
    """Write one workflow."""
    path = WORKFLOWS / f"{drawing.name}.json"
    path.write_text(json.dumps(drawing.workflow(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    steps.say(f"  {path.name}")


SD15_NOTE = """The numbers here are for an **SD1.5** checkpoint: choose yours in *Load Checkpoint*.

In *Load Image*, choose your own pictures. In *Load Concept*, choose your own concept and write its trigger word in the prompts; to
make one, use `sd15_train_a_concept`."""


def for_sd15(class_type: str, given: dict) -> dict:
    """Return the widget values to replace in a workflow for an SD1.5 checkpoint and the user's own concepts."""
    wanted = {}
    for name, value in given.items():
        if name in ("width", "height", "x") and isinstance(value, int):
            wanted[name] = value * 512 // SIDE
        elif isinstance(value, str):
            value = value.replace(f'"bias": {TOGETHER["bias"]}', f'"bias": {SD15_TOGETHER}')
            for made in ("monster", "robot"):
                value = value.replace(f"<demo-{made}>", f"<my-{made}>").replace(f"demo-{made}.", f"{made}_00001.")
            wanted[name] = value
    alone = SD15_ALONE if given.get("edit_mode") == "none" else {}
    return wanted | {k: v for k, v in (SD15.get(class_type, {}) | alone).items() if k in given}


@dataclass(frozen=True)
class Transformer:
    """A model whose parts are loaded one by one, with the settings that its sources give.

    Attributes:
        name: what its workflows' names begin with.
        title: its name.
        files: its model, text encoder and VAE.
        kind: of its text encoder, as *Load CLIP* calls it.
        latent: the node of empty latents, with its widgets.
        sampler: widgets of KSampler.
        size: of training pictures.
        batch: of training.
        prompt: what a prompt begins with, and a negative prompt.
        source: a sentence on where the settings are from.
    """

    name: str
    title: str
    files: tuple[str, str, str]
    kind: str
    latent: tuple[str, dict[str, int]]
    sampler: dict[str, object]
    size: int
    batch: int
    source: str
    prompt: tuple[str, str] = field(default=("", ""))


TRANSFORMERS = (
    Transformer(
        "wan",
        "Wan 2.1",
        ("wan2.1_t2v_1.3B_fp16.safetensors", "umt5_xxl_fp16.safetensors", "wan_2.1_vae.safetensors"),
        "wan",
        ("EmptyHunyuanLatentVideo", {"width": 832, "height": 480, "length": 1}),
        {"steps": 30, "cfg": 6.0, "sampler_name": "uni_pc", "scheduler": "simple"},
        480,
        4,
        "Steps, guidance, sampler and size are those of ComfyUI's own example for this model; the model's shift of 8 is ComfyUI's "
        "default. A picture is a video of one frame: raise **length**, in steps of 4, for more frames.",
    ),
    Transformer(
        "anima",
        "Anima",
        ("anima-base-v1.0.safetensors", "qwen_3_06b_base.safetensors", "qwen_image_vae.safetensors"),
        "stable_diffusion",
        ("EmptyLatentImage", {"width": 1024, "height": 1024}),
        {"steps": 30, "cfg": 4.0, "sampler_name": "er_sde", "scheduler": "simple"},
        1024,
        2,
        "Size, steps, guidance and sampler are those that its makers recommend; the model's shift of 3 is ComfyUI's default. "
        "*Load CLIP* recognises the text encoder from its file, whatever its **type** is set to.",
        ("masterpiece, best quality, ", "worst quality, low quality, blurry, jpeg artifacts"),
    ),
)


def of_the_user(class_type: str, given: dict) -> dict:
    """Return the widget values to replace in a workflow for a model that the user brings."""
    return {"image": "example.png"} if class_type == "LoadImage" else {}


def parts(sheet: Drawing, kind: Transformer) -> tuple[tuple, tuple, tuple]:
    """Load a transformer's MODEL, CLIP and VAE."""
    model, encoder, vae = kind.files
    return (
        sheet.add("UNETLoader", 0, 340, unet_name=model, weight_dtype="default")[0],
        sheet.add("CLIPLoader", 0, 340, clip_name=encoder, type=kind.kind)[0],
        sheet.add("VAELoader", 0, 340, vae_name=vae)[0],
    )


def untried(kind: Transformer) -> str:
    """Return a note's last words."""
    return f"""

**Not tried on the real model yet**: Perfusion has been tested with {kind.title} only on small models that have its layout and
random weights. {kind.source} The settings in *Train Concept* and *Concept Settings* are those for SD1.5. Files: `{kind.files[0]}`
in `models/diffusion_models`, `{kind.files[1]}` in `models/text_encoders`, `{kind.files[2]}` in `models/vae`."""


def train_transformer(sheet: Drawing, kind: Transformer) -> None:
    """As `train_a_concept`, from a model whose parts are loaded one by one."""
    base = parts(sheet, kind)
    drawn = {f"preview_{name.removesuffix('_name')}": value for name, value in kind.sampler.items()}
    options = sheet.add("PerfusionTrainingOptions", 640, 340, 700, top=880, preview_negative=kind.prompt[1], **drawn)
    settings = SD15["PerfusionTrain"] | {"size": kind.size, "batch": kind.batch}
    training(sheet, "monster", base, top=540, pitch=520, options=options[0], **settings)
    sheet.note(
        "How to",
        f"""## Teach a concept to {kind.title}

1. Choose the model's three files in the loaders.
2. **Pictures**: load four to ten pictures of one object. In each, paint over the object with *Open in MaskEditor*; or disconnect
**masks**.
3. **superclass**: the plain word for what it is. **trigger**: the word that will stand for it, in angle brackets.
4. Press **Run**. The concept is saved to `models/perfusion`. Use it with the workflow `{kind.name}_use_concepts`.
"""
        + untried(kind),
        0,
        560,
        460,
        1660,
    )


def use_transformer(sheet: Drawing, kind: Transformer) -> None:
    """As `use_concepts`, from a model whose parts are loaded one by one."""
    base = parts(sheet, kind)
    loaded = sheet.add("PerfusionLoadConcept", 0, 340, 310, concept_name="monster_00001.safetensors")
    chosen = sheet.add("PerfusionConceptSettings", 0, 340, 260, concept=loaded[0], **SETTINGS | SD15["PerfusionConceptSettings"])
    applied = sheet.add("PerfusionApply", 390, model=base[0], clip=base[1], concept=chosen[0])
    text = f"{kind.prompt[0]}a <my-monster> on the grass"
    positive = sheet.add("CLIPTextEncode", 760, 360, 140, "Prompt", clip=applied[1], text=text)
    name, widgets = kind.latent
    empty = sheet.add(name, 760, **widgets)
    draw(sheet, base, applied[0], applied[1], positive[0], 1170, negative=kind.prompt[1], latent_image=empty[0], **kind.sampler)
    sheet.note(
        "How to",
        f"""## Use a concept with {kind.title}

Choose the model's three files and a concept that was taught to it; `{kind.name}_train_a_concept` makes one. Write its trigger word
where you would write the plain word. **bias** balances likeness against the prompt. Regions and attention maps work only with
Stable Diffusion."""
        + untried(kind),
        0,
        560,
        380,
    )


def advice(sheet: Drawing, text: str) -> str:
    """Return a note's advice on other bases; empty in the workflows for SD1.5, which already have their settings."""
    return "" if sheet.change else text


def train_a_concept(sheet: Drawing) -> None:
    """Train a concept from four pictures and their masks, and save it."""
    training(sheet, "monster")
    sheet.note(
        "How to",
        """## Train a concept

1. **Pictures**: load four to ten pictures of one object. In each, paint over the object with *Open in MaskEditor*, so that
backgrounds stay out of the concept; or disconnect **masks**. The demo's pictures come with their masks.
2. **superclass**: the plain word for what it is. **trigger**: the word that will stand for it, in angle brackets.
3. Press **Run**. The concept is saved to `models/perfusion` and appears in *Load Concept* after a refresh (R).

If you stop training early, the concept so far is kept in `models/perfusion/steps`. Queue the same graph again to continue."""
        + advice(
            sheet,
            """

The numbers here are for the small demo base, whose images are 96 pixels on each side. With an SD1.5 checkpoint, use
`sd15_train_a_concept`.""",
        ),
        0,
        560,
        260,
        960,
    )


def train_with_captions(sheet: Drawing) -> None:
    """As `train_a_concept`, with a caption for each picture and with previews of two prompts."""
    said = "a photo of a <my-monster>"
    options = sheet.add(
        "PerfusionTrainingOptions",
        640,
        340,
        700,
        top=644,
        captions="\n".join(f"{said} {place}" for place in PLACES),
        preview_prompts="\n".join(f"{said} {place}" for place in ("on the grass", "on the beach")),
    )
    training(sheet, "monster", options=options[0])
    sheet.note(
        "How to",
        """## Captions and other options

Connect *Training Options* to the **options** input of *Train Concept*.

- **captions**: one line for each picture, in the order of the pictures, with the trigger word in it. Describe what should not
become part of the concept, such as the place. The captions here describe the demo's pictures. **captioned** below 1 mixes in the
templates.
- **invert_masks**: on for cut-outs (pictures with a transparent background), off for masks from the mask editor, as here.
- **shape** *whole*: wide and tall pictures keep their shape instead of being cropped to a square.
- **preview_prompts**: one preview for each line; here the sheet has two rows. For an LCM or Turbo checkpoint, set **preview_steps**
to a value from 4 to 8 and **preview_cfg** to a value from 1 to 2, and choose the sampler and scheduler that suit the checkpoint.
- **clip_vision**: connect *Load CLIP Vision* and set **keep** in *Train Concept* to *best*. The best step is then chosen by its
images instead of by the loss.
- **preset**: fills in the settings of *Train Concept* for SD1.5, SD2, SDXL or the demo's base."""
        + advice(
            sheet,
            """

The numbers here are for the small demo base. With an SD1.5 checkpoint, use `sd15_train_with_captions`, and write captions for
your own pictures.""",
        ),
        0,
        560,
        470,
        960,
    )


def use_concepts(sheet: Drawing) -> None:
    """The basic use of a concept: load, set, apply, sample."""
    base, model, clip = concept(sheet)
    positive = sheet.add("CLIPTextEncode", 760, 360, 140, "Prompt", clip=clip, text="a photo of a <my-monster> on the grass")
    draw(sheet, base, model, clip, positive[0], 1170)
    sheet.note(
        "How to",
        """## Use a concept

Write its trigger word where you would write the plain word: `a photo of a <my-monster> on the grass`. Weights such as
`(<my-monster>:1.2)` work too.

**bias** balances likeness against the prompt: lower it for more of the concept, raise it for more of the prompt. To use several
concepts, join them with *Combine Concepts*, or put one *Apply Concept* after another."""
        + advice(
            sheet,
            """ With an SD1.5 checkpoint, use an
empty latent of 512 × 512 pixels, **bias** 0.6 and **temperature** 0.15.""",
        ),
        0,
        560,
        220,
    )


def share_a_workflow(sheet: Drawing) -> None:
    """As `use_concepts`, with a concept that is stored inside the workflow."""
    base = sheet.add("CheckpointLoaderSimple", 0, 340, ckpt_name=CHECKPOINT)
    held = sheet.add("PerfusionConceptInWorkflow", 0, 340, 270, data=in_base64(MONSTER))
    chosen = sheet.add("PerfusionConceptSettings", 0, 340, 260, concept=held[0], **SETTINGS)
    applied = sheet.add("PerfusionApply", 390, model=base[0], clip=base[1], concept=chosen[0])
    text = "a photo of a <demo-monster> on the grass"
    positive = sheet.add("CLIPTextEncode", 760, 360, 140, "Prompt", clip=applied[1], text=text)
    draw(sheet, base, applied[0], applied[1], positive[0], 1170)
    sheet.note(
        "How to",
        """## A workflow that contains its concept

*Concept in Workflow* stores a concept inside the workflow itself. Choose one of yours under **store**; the node shows its size.
Click the trigger word to copy it. Save the workflow, or drag an image made with it onto another ComfyUI: the workflow then gives
the same image there, without a concept file.

Everyone who has the image has the concept: share only what you are allowed to share. *Save Concept* stores an author and a licence
in the file, and this node shows them.""",
        0,
        560,
        260,
    )


def compare_settings(sheet: Drawing) -> None:
    """A concept under three biases and three temperatures, with two seeds."""
    base = sheet.add("CheckpointLoaderSimple", 0, 340, ckpt_name=CHECKPOINT)
    loaded = sheet.add("PerfusionLoadConcept", 0, 340, 310, concept_name="monster_00001.safetensors")
    applied = sheet.add("PerfusionApply", 390, model=base[0], clip=base[1], concept=loaded[0])
    positive = sheet.add("CLIPTextEncode", 760, 360, 140, "Prompt", clip=applied[1], text="a photo of a <my-monster> on the grass")
    negative = sheet.add("CLIPTextEncode", 760, 360, 100, "Negative prompt", clip=applied[1], text="")
    empty = sheet.add("EmptyLatentImage", 760, width=SIDE, height=SIDE)
    links = {"model": applied[0], "vae": base[2], "positive": positive[0], "negative": negative[0], "latent_image": empty[0]}
    swept = {"biases": "0.2, 0.4, 0.6", "across": "temperature", "values": "0.05, 0.15, 0.3", "seeds": 2}
    compared = sheet.add("PerfusionSweep", 1170, 340, **links, **swept, **SAMPLER)
    sheet.add("SaveImage", 1560, 760, 460, "The grid", images=compared[0], filename_prefix="comparison")
    sheet.add("PreviewImage", 1560, 760, 320, "Its pictures", images=compared[1])
    sheet.note(
        "How to",
        """## Find the settings that suit a concept

Each row has one of the **biases**, each column one of the temperatures in **values**. **seeds** is the number of images in each
cell. Pick the cell you like best and type its numbers into *Concept Settings*.

Set **across** to strength and **values** to `0, 0.5, 1` to compare with the model without the edit. Only sampling is repeated;
prompts are encoded once. At most 100 images."""
        + advice(
            sheet,
            """ With an SD1.5 checkpoint, use an empty latent of 512 × 512 pixels, **biases** of
`0.45, 0.6, 0.75` and **values** of `0.1, 0.15, 0.2`.""",
        ),
        0,
        560,
        260,
    )


def find_the_bias(sheet: Drawing) -> None:
    """Find the bias of a concept with the model itself, and generate an image with it."""
    base = sheet.add("CheckpointLoaderSimple", 0, 340, ckpt_name=CHECKPOINT)
    loaded = sheet.add("PerfusionLoadConcept", 0, 340, 310, concept_name=MONSTER)
    text = sheet.add("PrimitiveStringMultiline", 0, 340, 140, "Prompt", value="a photo of a <demo-monster> on the beach")
    links = {"model": base[0], "clip": base[1], "concept": loaded[0], "prompt": text[0]}
    found = sheet.add("PerfusionAutoBias", 390, 320, **links, size=SIDE)
    applied = sheet.add("PerfusionApply", 390, model=base[0], clip=base[1], concept=found[0])
    positive = sheet.add("CLIPTextEncode", 760, 360, 140, clip=applied[1], text=text[0])
    draw(sheet, base, applied[0], applied[1], positive[0], 1170)
    sheet.note(
        "How to",
        """## Let the model find the bias

*Find Bias* compares the model's predictions for this prompt when it contains the concept's word with those when it contains the
plain word. It picks the lowest **bias** (where the concept shows most) at which the prompt still affects the image as much as it
does with the plain word. The chart shows how closely the prompt is followed at each bias.

**followed** sets how closely it must be followed: lower it for more of the concept. The node costs about as much as generating a
few images."""
        + advice(
            sheet,
            """ With an SD1.5 checkpoint, use **size** 512 and an empty latent of 512 × 512 pixels.""",
        ),
        0,
        340,
        300,
    )


def measure_a_text_encoder(sheet: Drawing) -> None:
    """As `train_a_concept`, with a covariance that is measured over the user's own captions."""
    base = sheet.add("CheckpointLoaderSimple", 0, ckpt_name=CHECKPOINT)
    images, masks = pictures(sheet)
    measured = sheet.add("PerfusionCovariance", 640, 340, 240, clip=base[1], captions="")
    sheet.add("PreviewAny", 640, 340, 160, "What was measured", source=measured[1])
    links = {"model": base[0], "clip": base[1], "vae": base[2], "images": images[0], "masks": masks[0]}
    train = sheet.add("PerfusionTrain", 1020, 380, covariance=measured[0], **links, **TRAINING)
    sheet.add("PerfusionSaveConcept", 1460, 360, concept=train[0], filename_prefix="monster")
    sheet.add("PreviewImage", 1460, 360, 380, "The concept", images=train[2])
    sheet.note(
        "How to",
        """## Captions of your own

To judge how similar words are, a concept's gate relies on how the text encoder's encodings are spread over many captions. *Train
Concept* measures this automatically, over captions that come with the pack. If your concepts come from a specialised field, or you
write prompts in an unusual way, enter your own **captions** here, one per line, or name a text file in the input folder in
**captions_file**. Use hundreds of varied captions: words can be told apart only along directions that occur in them.

The result is kept for each text encoder and set of captions. Concepts trained with it contain everything they need.""",
        0,
        560,
        260,
        960,
    )


def import_a_concept(sheet: Drawing) -> None:
    """Import another implementation's file, save it as a concept, and generate an image with it."""
    base = sheet.add("CheckpointLoaderSimple", 0, 340, ckpt_name=CHECKPOINT)
    taken = sheet.add(
        "PerfusionImport",
        390,
        340,
        model=base[0],
        clip=base[1],
        file_name="monster.pt",
        trigger="<my-monster>",
        superclass="monster",
    )
    sheet.add("PerfusionSaveConcept", 390, 340, concept=taken[0], filename_prefix="imported")
    chosen = sheet.add("PerfusionConceptSettings", 780, 340, concept=taken[0], **SETTINGS)
    applied = sheet.add("PerfusionApply", 780, 340, model=base[0], clip=base[1], concept=chosen[0], edit_mode="exact")
    positive = sheet.add("CLIPTextEncode", 1170, 360, 140, "Prompt", clip=applied[1], text="a photo of a <my-monster> on the grass")
    draw(sheet, base, applied[0], applied[1], positive[0], 1580)
    sheet.note(
        "How to",
        """## Import a concept

1. Put the other implementation's file (.pt, .pth, .ckpt or .bin) into `models/perfusion`, press R, and choose it in *Import
Concept*. Files of **perfusion-pytorch** and of **ChenDarYen's Key-Locked-Rank-One-Editing** are supported.
2. Load a checkpoint of the base that the concept was trained on, and enter a **trigger** and the **superclass**.
3. Press **Run**. *Save Concept* writes it as `imported_00001`; from then on, use *Load Concept*.

If you have no such file, run `python -m scripts.generate.foreign_file` in the environment that `scripts/demo.py` set up. It writes
the demo's concept as `monster.pt` in the format of perfusion-pytorch.

The implementations that trained these concepts use **bias** 0.7, **temperature** 0.15 and the equivalent of **edit_mode** `paper`;
choose these to get the same results."""
        + advice(
            sheet,
            """ The values here are for the small demo base.""",
        ),
        0,
        340,
        600,
    )


def export_a_concept(sheet: Drawing) -> None:
    """Export a concept as a LoRA and an embedding, and show the images that these will give beside the concept's own."""
    base = sheet.add("CheckpointLoaderSimple", 0, 340, ckpt_name=CHECKPOINT)
    loaded = sheet.add("PerfusionLoadConcept", 0, 340, 310, concept_name="monster_00001.safetensors")
    chosen = sheet.add("PerfusionConceptSettings", 0, 340, 260, concept=loaded[0], **SETTINGS)
    sheet.add("PerfusionExport", 390, 320, 320, model=base[0], clip=base[1], concept=chosen[0], filename_prefix="monster")
    for mode, prompt in (("exact", "The concept"), ("static", "As the LoRA will be")):
        applied = sheet.add("PerfusionApply", 390, model=base[0], clip=base[1], concept=chosen[0], edit_mode=mode)
        positive = sheet.add(
            "CLIPTextEncode", 760, 360, 140, prompt, clip=applied[1], text="a photo of a <my-monster> on the grass"
        )
        draw(sheet, base, applied[0], applied[1], positive[0], 1170)
    sheet.note(
        "How to",
        """## Export a concept

Press **Run**: a LoRA is written to `models/loras` and an embedding to `models/embeddings`, each with a counter, and the *Export
Concept* node reports how closely the LoRA approximates the concept. A LoRA cannot tell whether a prompt names the concept: it acts
a little in every prompt, and **bias** and **strength** stay as they were when it was written. The two images show the concept and
the LoRA's version of it, from the same seed.

**To use them without Perfusion**: press R, put a *Load LoRA* node between the checkpoint and the sampler with **strength_model** 1
and **strength_clip** 0, and write the embedding's word in an ordinary *CLIP Text Encode*, with a space before and after it:
`a photo of a embedding:monster_00001 on the grass`. The LoRA is made for the model connected here, including any LoRAs on it.""",
        0,
        710,
        300,
        880,
    )


def teach_a_word_alone(sheet: Drawing) -> None:
    """Textual Inversion: train from the same pictures a word that edits no layer."""
    training(sheet, "monster-word", **ALONE)
    sheet.note(
        "How to",
        """## Train only a word

With **edit_mode** *none*, no layer of the model is edited and only the word is learned: Textual Inversion. You can load, combine
and apply the result like any concept; bias and temperature have no effect on it.

**initial_word** is what the word starts as: empty for the superclass, another plain word, or `embedding:NAME` from
`models/embeddings`, to continue from an embedding you have. Starting from more words or more vectors gives the learned word more
vectors.

With SD1.5, good values for **word_rate** are between 0.0005 and 0.005."""
        + advice(
            sheet,
            """

The numbers here are for the small demo base. With an SD1.5 checkpoint, use `sd15_teach_a_word_alone`.""",
        ),
        0,
        560,
        280,
        960,
    )


def lock_keys_globally(sheet: Drawing) -> None:
    """The same prompt with the concept's own keys locked, and with all keys locked."""
    base, model, clip = concept(sheet, MONSTER)
    prompt = "a photo of a <demo-monster> in the snow"
    plain = sheet.add("CLIPTextEncode", 760, 360, 140, "Prompt, local lock", clip=clip, text=prompt)
    locked = sheet.add("PerfusionTextEncode", 760, 360, 140, "Prompt, global lock", clip=clip, text=prompt)
    negative = sheet.add("CLIPTextEncode", 760, 360, 100, "Negative prompt", clip=clip, text="")
    for title, positive in (("Local lock", plain), ("Global lock", locked)):
        sample(sheet, base, model, positive[0], negative[0], 1170, title)
    sheet.note(
        "How to",
        """## Two ways to lock keys

Keys decide what parts of the image words attend to, values what they bring. *CLIP Text Encode* locks the concept's own keys to its
plain word. *Text Encode, Keys Locked* makes **all** keys from the prompt with the plain word in the concept's place: the image is
laid out just as with the plain prompt. If less of the concept shows than you like, lower its **bias**.

You can use both nodes in one graph; without a trigger word they give the same result.""",
        0,
        560,
        230,
    )


def see_attention(sheet: Drawing) -> None:
    """Show where words attend while an image is sampled."""
    base, model, clip = concept(sheet, MONSTER)
    watched = sheet.add("PerfusionWatchAttention", 390, model=model)
    positive = sheet.add("CLIPTextEncode", 760, 360, 140, "Prompt", clip=clip, text="a photo of a <demo-monster> on the grass")
    sampled, decoded = draw(sheet, base, watched[0], clip, positive[0], 1170)
    shown = sheet.add(
        "PerfusionShowAttention",
        1520,
        360,
        attention=watched[1],
        samples=sampled[0],
        images=decoded[0],
        words="<demo-monster>, on, grass",
    )
    sheet.add("SaveImage", 1930, 760, 360, "Where the words looked", images=shown[0], filename_prefix="attention")
    masks = sheet.add("MaskToImage", 1930, 300, mask=shown[1])
    sheet.add("PreviewImage", 1930, 760, 320, "The same as masks", images=masks[0])
    sheet.note(
        "How to",
        """## See what words attend to

Put *Watch Attention* between the model and any sampler; the images stay bit-identical. *Show Attention* needs the sampler's latents
to know which image is meant.

A label such as `<demo-monster> 12.2% gate 0.98` gives the word's share of all attention and how far the concept's gate opens at
it. A few per cent is usual: most attention goes to the start token and to the tokens after the words. You can use the masks like
any others.""",
        0,
        560,
        230,
    )


def train_without_painting(sheet: Drawing) -> None:
    """As `train_a_concept`, with masks that the model itself finds."""
    base = sheet.add("CheckpointLoaderSimple", 0, ckpt_name=CHECKPOINT)
    images, _ = pictures(sheet, masked=False)
    links = {"model": base[0], "clip": base[1], "vae": base[2], "images": images[0]}
    found = sheet.add("PerfusionFindObject", 640, word="monster", size=SIDE, **links)
    train = sheet.add("PerfusionTrain", 1020, 380, masks=found[0], **links, **TRAINING)
    sheet.add("PerfusionSaveConcept", 1460, 360, concept=train[0], filename_prefix="monster")
    sheet.add("PreviewImage", 1460, 360, 380, "The concept", images=train[2])
    sheet.note(
        "How to",
        """## Train a concept without painting masks

*Find Object* uses the checkpoint's own attention to find what its **word** names in each picture, and shows the masks. If one of
them is wrong, try another **seed** or paint that one. No other model is needed.

Look at the masks before you train for long."""
        + advice(sheet, """ With an SD1.5 checkpoint, use `sd15_train_without_painting`."""),
        0,
        560,
        200,
        960,
    )


def inspect_gates(sheet: Drawing) -> None:
    """Inspect the effect of two concepts on a prompt, before anything is sampled."""
    _, model, clip = concept_pair(sheet)
    positive = sheet.add(
        "CLIPTextEncode", 760, 360, 140, "Prompt", clip=clip, text="a <demo-monster> and a <demo-robot> on the grass"
    )
    inspected = sheet.add("PerfusionInspect", 1170, 460, 560, model=model, positive=positive[0])
    sheet.add("SaveImage", 1680, 460, 560, "Each concept's gate at each word", images=inspected[0], filename_prefix="gates")
    sheet.add("PreviewAny", 1680, 460, 200, "In words", source=inspected[1])
    sheet.note(
        "How to",
        """## Is it working?

*Inspect Gates* examines the prompt and the model that go into a sampler, without sampling an image. It shows how far each concept's
gate opens at each word, which trigger word is missing, whether two concepts compete for a word, how much of the layers' keys and
values the edit changes, and what LoRAs and other patches do.

If a gate is nearly 0 at its own word, lower the **bias**. If it is also open at all other words, raise the bias or lower
the **temperature**.""",
        760,
        360,
        420,
    )


def use_two_concepts(sheet: Drawing) -> None:
    """Use two concepts that were trained separately in one image."""
    base = sheet.add("CheckpointLoaderSimple", 0, 340, ckpt_name=CHECKPOINT)
    rows = [{"name": name, "on": True, "strength": 1, "bias": TOGETHER["bias"]} for name in (MONSTER, ROBOT)]
    loaded = sheet.add("PerfusionLoadConcepts", 0, 340, 150, concepts=json.dumps(rows))
    applied = sheet.add("PerfusionApply", 390, model=base[0], clip=base[1], concept=loaded[0])
    model, clip = applied[0], applied[1]
    text = "a photo of a <demo-monster> and a <demo-robot> in the snow"
    positive = sheet.add("CLIPTextEncode", 760, 360, 140, "Prompt", clip=clip, text=text)
    draw(sheet, base, model, clip, positive[0], 1170, width=2 * SIDE)
    sheet.note(
        "How to",
        """## Two concepts in one picture

You train concepts separately and use any number of them together. In *Load Concepts* each has a row: a switch, its file, a strength
and a bias (empty: the concept's own). If one takes the other's place, give each a region (see `two_places`), or raise
the **bias** of the one that takes over."""
        + advice(
            sheet,
            """

The demo base draws two characters next to each other, in an image twice as wide.""",
        ),
        0,
        560,
        170,
    )


def two_places(sheet: Drawing) -> None:
    """Use two concepts in one image, each in its own region."""
    left, right = (half(sheet, x) for x in (0, SIDE))
    base, model, clip = concept_pair(sheet, left, right)
    positive = sheet.add(
        "CLIPTextEncode", 760, 360, 140, "Prompt", clip=clip, text="a <demo-monster> and a <demo-robot> on the grass"
    )
    draw(sheet, base, model, clip, positive[0], 1170, width=2 * SIDE)
    sheet.note(
        "How to",
        """## Two concepts, two places

Each concept's **region** is a mask: its word attends only to that area, and its edit is applied only there. Here the left half is
for the monster and the right half for the robot; make your own masks with *Load Image (as Mask)* or any mask node. A concept
without a region may appear everywhere.""",
        760,
        360,
        300,
    )


def schedule_a_concept(sheet: Drawing) -> None:
    """The same prompt with a concept that acts in the whole run, only in its later part, and with a rising bias."""
    base = sheet.add("CheckpointLoaderSimple", 0, 340, ckpt_name=CHECKPOINT)
    loaded = sheet.add("PerfusionLoadConcept", 0, 340, 310, concept_name=MONSTER)
    chosen = sheet.add("PerfusionConceptSettings", 0, 340, 260, concept=loaded[0], **SETTINGS)
    late = sheet.add("PerfusionConceptSchedule", 390, 320, title="Begins at 0.3", concept=chosen[0], start_percent=0.3)
    rising = sheet.add("PerfusionConceptSchedule", 390, 320, title="Bias rises", concept=chosen[0], bias_change=0.4)
    ways = (("All the way", chosen), ("From 0.3 on", late), ("A bias that rises", rising))
    applied = [sheet.add("PerfusionApply", 760, 320, model=base[0], clip=base[1], concept=way[0]) for _, way in ways]
    clip, text = applied[0][1], "a photo of a <demo-monster> on the beach"
    positive = sheet.add("CLIPTextEncode", 1130, 360, 140, "Prompt", clip=clip, text=text)
    negative = sheet.add("CLIPTextEncode", 1130, 360, 100, "Negative prompt", clip=clip, text="")
    empty = sheet.add("EmptyLatentImage", 1130, width=SIDE, height=SIDE)
    for (title, _), each in zip(ways, applied, strict=True):
        sample(sheet, base, each[0], positive[0], negative[0], 1540, title, empty)
    sheet.note(
        "How to",
        """## When a concept acts

On the way from noise (0) to image (1), layout is decided first and detail last. *Concept Schedule* sets when the concept starts and
stops acting; before and after, only its word acts. **start_percent** 0.3 leaves more of the layout to the word and the rest of the
prompt. **bias_change** is how much the **bias** rises from start to end: here the concept dominates at first and the prompt at the
end; below 0 it is the other way round. If the bias falls far, backgrounds are lost.

All three samplers use the same seed and prompt. The schedule belongs to this graph; *Save Concept* does not store it.""",
        0,
        560,
        260,
    )


def keep_layout(sheet: Drawing) -> None:
    """Generate the plain word's image, then the concept's in the same layout and without it."""
    base, model, clip = concept(sheet, MONSTER)
    watched = sheet.add("PerfusionWatchAttention", 390, model=model)
    word, name = (
        sheet.add("CLIPTextEncode", 760, 360, 120, title, clip=clip, text=f"a photo of a {said} on the beach")
        for title, said in (("Prompt with the plain word", "monster"), ("Prompt with the concept", "<demo-monster>"))
    )
    negative = sheet.add("CLIPTextEncode", 760, 360, 100, "Negative prompt", clip=clip, text="")
    first = sample(sheet, base, watched[0], word[0], negative[0], 1170, "The plain word")
    kept = sheet.add("PerfusionKeepLayout", 760, 340, model=model, attention=watched[1], samples=first[0][0])
    sample(sheet, base, kept[0], name[0], negative[0], 1170, "The concept in its layout", first[1])
    sample(sheet, base, model, name[0], negative[0], 1170, "The concept by itself", first[1])
    sheet.note(
        "How to",
        """## Keep an image's layout

The first image is generated with the plain word. *Keep Layout* generates the next one in its layout: words that both prompts share
attend to the same places as in the first image (Prompt-to-Prompt). **end** sets for how long: 1 keeps the most, 0.5 lets the
concept keep more of its own shape. All three samplers use the same seed, sampler and number of steps.""",
        0,
        560,
        200,
    )


def keep_layout_of_a_picture(sheet: Drawing) -> None:
    """Invert a picture to noise, and generate the concept from it in the picture's layout."""
    base, model, clip = concept(sheet, MONSTER)
    loaded = sheet.add("LoadImage", 0, 340, 320, "The picture", image="plain-monster.png")
    scaled = sheet.add("ImageScale", 390, 340, image=loaded[0], upscale_method="area", width=SIDE, height=SIDE, crop="center")
    encoded = sheet.add("VAEEncode", 390, 340, pixels=scaled[0], vae=base[2])
    watched = sheet.add("PerfusionWatchAttention", 390, 340, model=model)
    word, name = (
        sheet.add("CLIPTextEncode", 760, 360, 120, title, clip=clip, text=f"a photo of a {said} on the beach")
        for title, said in (("What the picture shows", "monster"), ("Prompt with the concept", "<demo-monster>"))
    )
    negative = sheet.add("CLIPTextEncode", 760, 360, 100, "Negative prompt", clip=clip, text="")
    sampler = sheet.add("KSamplerSelect", 760, 360, sampler_name="euler")
    down = sheet.add("BasicScheduler", 760, 360, model=model, scheduler="normal", steps=40, denoise=1.0)
    up = sheet.add("FlipSigmas", 760, 360, sigmas=down[0])
    fixed = {"add_noise": False, "noise_seed": 0, "negative": negative[0], "sampler": sampler[0]}
    links = {"positive": word[0], "sigmas": up[0], "latent_image": encoded[0]}
    noise = sheet.add("SamplerCustom", 1170, 320, title="Picture to noise", model=watched[0], cfg=1.0, **links, **fixed)
    kept = sheet.add("PerfusionKeepLayout", 1170, 320, model=model, attention=watched[1], samples=noise[0])
    ways = (("The picture again", model, word, 1.0), ("The concept in its layout", kept[0], name, SAMPLER["cfg"]))
    for title, drawn_by, prompt, cfg in ways:
        links = {"model": drawn_by, "positive": prompt[0], "sigmas": down[0], "latent_image": noise[0]}
        drawn = sheet.add("SamplerCustom", 1540, 320, title=title, cfg=cfg, **links, **fixed)
        shown(sheet, base, drawn, 1910, title)
    sheet.note(
        "How to",
        """## Keep the layout of a picture you have

*Picture to noise* runs the sampler backwards (*FlipSigmas*, **cfg** 1, no noise added) with a prompt that describes the picture. It
finds noise from which this picture could have been generated. From that noise, *Keep Layout* generates the concept in the layout of
the picture. *The picture again* shows how much was kept on the way; more steps keep more, and so does a low **cfg**.

A quicker way is to use *VAE Encode* and an ordinary *KSampler* with **denoise** at 0.6; connect *Watch Attention* and *Keep
Layout* to it as in `keep_layout`."""
        + advice(sheet, """ With an SD1.5 checkpoint, scale the picture to 512 × 512."""),
        0,
        560,
        290,
    )


def in_base64(name: str) -> str:
    """Return one of the demo's concepts in the form that Concept in Workflow stores."""
    return base64.b64encode((bootstrap.ROOT / "demo" / "concepts" / name).read_bytes()).decode()


# ---- parts that several workflows share --------------------------------------------------------------------------------------


def pictures(sheet: Drawing, masked: bool = True, top: int = 196, pitch: int = 370) -> tuple[Node, Node | None]:
    """Load the demo's four pictures and their masks, as batches; no masks unless `masked`."""
    loaded = [
        sheet.add("LoadImage", 290 * (i % 2), 270, 320, f"Picture {i + 1}", top + pitch * (i // 2), image=f"monster-{i}.png")
        for i in range(4)
    ]
    images = sheet.add("BatchImagesNode", 640, top=180, **{f"images__image{i}": node[0] for i, node in enumerate(loaded)})
    masks = {f"masks__mask{i}": node[1] for i, node in enumerate(loaded)}
    return images, sheet.add("BatchMasksNode", 640, **masks) if masked else None


def training(
    sheet: Drawing, prefix: str, base: Sequence[tuple] | None = None, top: int = 196, pitch: int = 370, **changed: object
) -> None:
    """Train a concept with the settings TRAINING, save it and show the results.

    It is taught to `base`, MODEL, CLIP and VAE, or else to the demo's checkpoint, from the demo's pictures, whose rows begin
    at `top` and are `pitch` apart.
    """
    base = base or sheet.add("CheckpointLoaderSimple", 0, ckpt_name=CHECKPOINT)
    images, masks = pictures(sheet, top=top, pitch=pitch)
    settings = TRAINING | changed
    train = sheet.add(
        "PerfusionTrain", 1020, 380, model=base[0], clip=base[1], vae=base[2], images=images[0], masks=masks[0], **settings
    )
    sheet.add("PerfusionSaveConcept", 1460, 360, concept=train[0], filename_prefix=prefix)
    sheet.add("PreviewImage", 1460, 360, 260, "Loss", images=train[1])
    sheet.add("PreviewImage", 1460, 560, 260, "The concept, step by step", images=train[3])


def concept(sheet: Drawing, name: str = "monster_00001.safetensors") -> tuple[Node, tuple, tuple]:
    """Apply a concept to a checkpoint; return the checkpoint's node and the MODEL and CLIP with the concept."""
    base = sheet.add("CheckpointLoaderSimple", 0, 340, ckpt_name=CHECKPOINT)
    loaded = sheet.add("PerfusionLoadConcept", 0, 340, 310, concept_name=name)
    chosen = sheet.add("PerfusionConceptSettings", 0, 340, 260, concept=loaded[0], **SETTINGS)
    applied = sheet.add("PerfusionApply", 390, model=base[0], clip=base[1], concept=chosen[0])
    return base, applied[0], applied[1]


def concept_pair(sheet: Drawing, *regions: Node) -> tuple[Node, tuple, tuple]:
    """Apply the demo's two concepts to a checkpoint, each with its region if any are given; return as `concept` does."""
    base = sheet.add("CheckpointLoaderSimple", 0, 340, ckpt_name=CHECKPOINT)
    chosen = []
    for i, name in enumerate((MONSTER, ROBOT)):
        title = ("First concept", "Second concept")[i]
        loaded = sheet.add("PerfusionLoadConcept", 0, 340, 310, title, concept_name=name)
        own = SETTINGS | {"region": regions[i][0]} if regions else TOGETHER
        chosen.append(sheet.add("PerfusionConceptSettings", 390, 320, concept=loaded[0], **own))
    both = sheet.add("PerfusionCombineConcepts", 390, **{f"concepts__concept{i}": each[0] for i, each in enumerate(chosen)})
    applied = sheet.add("PerfusionApply", 390, model=base[0], clip=base[1], concept=both[0])
    return base, applied[0], applied[1]


def half(sheet: Drawing, x: int) -> Node:
    """Add a mask for an image of two characters, white from column x to x + SIDE."""
    sizes = ((0.0, 2 * SIDE), (1.0, SIDE))
    black, white = (sheet.add("SolidMask", -390, 300, value=v, width=w, height=SIDE) for v, w in sizes)
    return sheet.add("MaskComposite", -390, 300, destination=black[0], source=white[0], x=x, y=0, operation="add")


def sample(
    sheet: Drawing, base: Node, model: tuple, positive: tuple, negative: tuple, x: int, title: str, empty: Node | None = None
) -> tuple[Node, Node]:
    """Add a sampler with a title, and its image beside it; return the nodes of the sampler and of the empty latent."""
    empty = empty or sheet.add("EmptyLatentImage", 760, width=SIDE, height=SIDE)
    links = {"model": model, "positive": positive, "negative": negative, "latent_image": empty[0]}
    sampled = sheet.add("KSampler", x, 300, title=title, **links, **SAMPLER)
    shown(sheet, base, sampled, x + 350, title)
    return sampled, empty


def shown(sheet: Drawing, base: Node, sampled: Node, x: int, title: str) -> None:
    """Decode and save the result of a sampler with a title."""
    decoded = sheet.add("VAEDecode", x, 220, samples=sampled[0], vae=base[2])
    sheet.add("SaveImage", x, 300, 270, f"Picture: {title}", images=decoded[0], filename_prefix="perfusion")


def draw(
    sheet: Drawing,
    base: Node | Sequence[tuple],
    model: tuple,
    clip: tuple,
    positive: tuple,
    x: int,
    width: int = SIDE,
    negative: str = "",
    **sampler: object,
) -> tuple[Node, Node]:
    """Sample and save an image; return the nodes of the sampler and the decoder. For two characters, `width` is two squares."""
    unwanted = sheet.add("CLIPTextEncode", x - 410, 360, 100, "Negative prompt", clip=clip, text=negative)
    empty = sheet.add("EmptyLatentImage", x - 410, width=width, height=SIDE) if "latent_image" not in sampler else None
    latent = {} if empty is None else {"latent_image": empty[0]}
    settings = SAMPLER | latent | sampler
    sampled = sheet.add("KSampler", x, 300, model=model, positive=positive, negative=unwanted[0], **settings)
    decoded = sheet.add("VAEDecode", x, 220, samples=sampled[0], vae=base[2])
    sheet.add("SaveImage", x + 350, 360, 400, images=decoded[0], filename_prefix="perfusion")
    return sampled, decoded


DRAWN: list[Callable[[Drawing], None]] = [
    train_a_concept,
    use_concepts,
    use_two_concepts,
    share_a_workflow,
    compare_settings,
    find_the_bias,
    import_a_concept,
    export_a_concept,
    teach_a_word_alone,
    lock_keys_globally,
    see_attention,
    train_without_painting,
    train_with_captions,
    measure_a_text_encoder,
    inspect_gates,
    two_places,
    schedule_a_concept,
    keep_layout,
    keep_layout_of_a_picture,
]

if __name__ == "__main__":
    steps.exit_with(main)
