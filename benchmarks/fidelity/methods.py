"""The methods that are compared: how each trains and applies a concept, as graphs of the pack's and the host's nodes only.

A `Recipe` describes how a concept is trained, a `Use` how the result is applied. Each method has one dial that trades likeness to
the pictures for fidelity to the prompt; its values are swept at inference, without new training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from benchmarks.fidelity.concepts import Concept
from demo import make_pictures
from perfusion_core.prompts import TEMPLATES
from perfusion_core.training.base_model import processor_has_bfloat16
from scripts.generate.make_workflows import SETTINGS, TRAINING
from scripts.harness.graphs import Graph, Link

PERFUSION, LORA, TUNED = "perfusion", "lora", "tuned"
FOLLOWED = "followed"
TRIGGER = "<it>"
RARE = {"robot": "vqk", "plant": "qzv", "blob": "jxw"}
"""Maps a superclass to the rare token that names the concept in the prompts of a LoRA or fine-tune, as in DreamBooth.

They differ, so that several LoRAs in one image can be told apart; other superclasses have RAREST.
"""
RAREST = "zxq"
TIMES = 2
"""How often the host's trainer is given each picture. With four pictures, all training prompts then occur."""
PAINTED, PLAIN, FOUND, NO_MASK = "painted", "plain", "found", "none"


@dataclass(frozen=True)
class Recipe:
    """How a concept is trained.

    Attributes:
        teacher: PERFUSION for Train Concept, LORA for the host's Train LoRA, TUNED for `fine_tune`.
        widgets: Differences from the `WIDGETS` of that node, or that module; {0} in `initial_word` stands for the superclass.
        pictures: Number of training pictures.
        masks: PAINTED silhouettes; PLAIN ones, which weight a latent by its share of the object instead of that share squared;
            masks FOUND by Find Object; or NO_MASK. Only Train Concept takes masks.
        positions: Tokens at which the covariance is measured; "" leaves the measurement to Train Concept.
        captioned: How often a picture comes with a caption that names its mood and place; 0 for no captions.
    """

    teacher: str = PERFUSION
    widgets: Mapping[str, object] = field(default_factory=dict)
    pictures: int = 4
    masks: str = PAINTED
    positions: str = ""
    captioned: float = 0.0

    def all_widgets(self) -> dict[str, object]:
        """Return all widget values of the training node."""
        return {**WIDGETS[self.teacher], **self.widgets}

    def key(self, concept: Concept, seed: int) -> str:
        """Return a name for the result of training a concept, which is unique to the recipe, the concept and the seed."""
        told = asdict(self) | {"widgets": self.all_widgets()}
        if not self.captioned:
            del told["captioned"]  # Without captions, the names are those of before there were any.
        if self.teacher != PERFUSION:
            told["named"] = rare(concept[1])
        parts = [told, concept, seed]
        return f"{concept[0]}-{concept[1]}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Use:
    """How a concept is applied.

    Attributes:
        dial: The swept setting: "bias"; "strength"; FOLLOWED, the target of Find Bias, which then finds a bias for each prompt; or
            "" for none.
        mode: Edit mode.
        lock: "local" or "global" key-locking.
        settings: Differences from the demo's SETTINGS.
        bits: Bits of each number in the concept's file: 16, or 8 or 4 if it is quantized before it is used.
    """

    dial: str = "bias"
    mode: str = "exact"
    lock: str = "local"
    settings: Mapping[str, float] = field(default_factory=dict)
    bits: int = 16

    def told(self) -> dict[str, object]:
        """Return the fields for the keys of scores; 16 bits are the rule and left out."""
        told = asdict(self)
        if self.bits == 16:
            del told["bits"]
        return told


def rare(word: str) -> str:
    """Return what names a concept of this superclass in the prompts of a LoRA or fine-tune."""
    return f"{RARE.get(word, RAREST)} {word}"


TAUGHT: dict[str, object] = {name: value for name, value in TRAINING.items() if name not in ("size", "superclass", "trigger")}
"""The demo's settings of Train Concept, whatever it is taught."""

WIDGETS: dict[str, dict[str, object]] = {
    PERFUSION: TAUGHT | {"lock": "local", "edit_mode": "exact", "at_once": 8, "precision": "auto", "preview_every": 0},
    LORA: {
        # One picture at a time: Train LoRA evaluates each picture of a batch with all of its captions, also 4 times the work.
        "steps": 300, "batch_size": 1, "grad_accumulation_steps": 4, "learning_rate": 1e-3, "rank": 8, "optimizer": "AdamW",
        "loss_function": "MSE", "training_dtype": "bf16", "lora_dtype": "fp32", "quantized_backward": False,
        "algorithm": "LoRA", "gradient_checkpointing": False, "checkpoint_depth": 1, "offloading": False,
        # Bypass mode computes the same result a third faster.
        "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": True,
    },
    TUNED: {"steps": 300, "batch": 4, "learning_rate": 3e-5, "prior": 0.0},
}  # fmt: skip
"""Default widget values of the training nodes, which a recipe may override."""


def teach(
    graph: Graph, base: tuple[Link, Link, Link], recipe: Recipe, word: str, names: list[str], side: int, seed: int, file: str
) -> None:
    """Add the nodes that train a concept from the pictures with these names in the input folder, and save it as `file`."""
    model, clip, vae = base
    loaded = [graph.add("LoadImage", image=name) for name in names]
    images = batch(graph, "image", [[key, 0] for key in loaded])
    if recipe.teacher == LORA:
        teach_lora(graph, recipe, base, scaled(graph, images, side), word, len(names), seed, file)
        return
    more: dict[str, object] = {}
    if recipe.masks == FOUND:
        found = graph.add("PerfusionFindObject", model=model, clip=clip, vae=vae, images=images, word=word, size=side, seed=0)
        more["masks"] = [found, 0]
    elif recipe.masks != NO_MASK:
        more["masks"] = batch(graph, "mask", [[key, 1] for key in loaded])
    if recipe.positions:
        more["covariance"] = [graph.add("PerfusionCovariance", clip=clip, captions="", positions=recipe.positions), 0]
    more |= {"superclass": word, "trigger": f"<{file}>", "size": side, "seed": seed}
    given = {"model": model, "clip": clip, "vae": vae, "images": images}
    if recipe.captioned:
        said = "\n".join(make_pictures.captions(word, len(names)))
        more["options"] = graph.options(captions=said, captioned=recipe.captioned)
    widgets = recipe.all_widgets()
    widgets["initial_word"] = str(widgets.get("initial_word", "")).format(word)
    taught = graph.add("PerfusionTrain", **given, **more, **widgets)
    graph.add("PerfusionSaveConcept", concept=[taught, 0], filename_prefix=file, overwrite=True, precision="half")


def batch(graph: Graph, kind: str, links: list[Link]) -> Link:
    """Add the node that joins IMAGEs or MASKs into one batch; a single one is returned unchanged."""
    if len(links) == 1:
        return links[0]
    return [graph.add(f"Batch{kind.title()}sNode", **{f"{kind}s__{kind}{i}": link for i, link in enumerate(links)}), 0]


def scaled(graph: Graph, images: Link, side: int) -> Link:
    """Add the node that crops pictures to their central square and scales it to `side` pixels."""
    given = {"upscale_method": "area", "width": side, "height": side, "crop": "center"}
    return [graph.add("ImageScale", image=images, **given), 0]


def dtype_here() -> str:
    """Return the dtype in which this machine trains LoRAs: bf16 where it is fast, as with Train Concept's `auto`, else fp32.

    Elsewhere bf16 takes ten times as long. A recipe's key says bf16 in both cases, because results of different machines differ in
    their last digits anyway.
    """
    return "bf16" if torch.cuda.is_available() or processor_has_bfloat16() else "fp32"


def teach_lora(
    graph: Graph, recipe: Recipe, base: tuple[Link, Link, Link], images: Link, word: str, count: int, seed: int, file: str
) -> None:
    """Add the host's trainer on `count` pictures, each TIMES with other captions, of which it keeps one for each entry."""
    model, clip, vae = base
    latents = [graph.add("VAEEncode", pixels=batch(graph, "image", [images] * TIMES), vae=vae), 0]
    captions = [TEMPLATES[i % len(TEMPLATES)].format(rare(word)) for i in range(TIMES * count)]
    positive = graph.text(clip, captions[0])
    for caption in captions[1:]:
        # Combined in order into one CONDITIONING, of which the trainer gives each picture its own entry.
        positive = [graph.add("ConditioningCombine", conditioning_1=positive, conditioning_2=graph.text(clip, caption)), 0]
    given = {"model": model, "latents": latents, "positive": positive, "seed": seed}
    taught = graph.add("TrainLoraNode", **given, **recipe.all_widgets() | {"training_dtype": dtype_here()})
    graph.add("SaveLoRA", lora=[taught, 0], prefix=f"loras/{file}")


def use(
    graph: Graph, base: tuple[Link, Link], recipe: Recipe, how: Use, file: Path, word: str, value: float, side: int, prompt: str
) -> tuple[Link, Link, str]:
    """Apply what was learned, with the dial at `value`.

    `prompt`, with {} for the concept, is the prompt for which Find Bias finds a bias, with images of `side` pixels.

    Returns:
        The MODEL, the CLIP, and the text that names the concept in prompts.
    """
    model, clip = base
    if recipe.teacher == TUNED:
        whole = graph.checkpoint(file.name)[0]
        mixed = graph.add("ModelMergeSimple", model1=whole, model2=model, ratio=value)
        return [mixed, 0], clip, rare(word)
    if recipe.teacher == LORA:
        loaded = graph.add("LoraLoaderModelOnly", model=model, lora_name=file.name, strength_model=value)
        return [loaded, 0], clip, rare(word)
    dial = {how.dial: value} if how.dial not in ("", FOLLOWED) else {}
    concept = graph.load(str(file), **{**SETTINGS, "trigger": TRIGGER, **how.settings, **dial})
    if how.dial == FOLLOWED:
        asked = {"prompt": prompt.format(TRIGGER), "followed": value, "size": side, "seed": 0, "edit_mode": how.mode}
        concept = [graph.add("PerfusionAutoBias", model=model, clip=clip, concept=concept, **asked), 0]
    model, clip = graph.apply(model, clip, concept, how.mode)
    return model, clip, TRIGGER


@dataclass(frozen=True)
class Method:
    """A method: its use, the values of its dial, and the recipes among which it is tuned in the demo's world."""

    use: Use
    values: tuple[float, ...]
    candidates: tuple[Recipe, ...]


def recipes(widgets: list[dict[str, object]], teacher: str = PERFUSION, **shared: object) -> tuple[Recipe, ...]:
    """Return recipes that differ in their widgets."""
    return tuple(Recipe(teacher, shared | each) for each in widgets)


def tuned(prior: float) -> tuple[Recipe, ...]:
    """Return recipes for a fine-tune of all weights that differ in their learning rate."""
    return tuple(Recipe(TUNED, {"learning_rate": rate, "prior": prior}) for rate in (3e-5, 1e-4, 1e-5, 3e-4))


EDITS: list[dict[str, object]] = [{}, {"word_rate": 3e-4}, {"train_bias": 0.75, "train_temperature": 0.1}, {"output_rate": 0.3}]
"""Candidate widgets for the methods that learn a word and outputs."""
BIASES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6)
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25)

METHODS: dict[str, Method] = {
    "Perfusion": Method(Use("bias"), BIASES, recipes(EDITS)),
    "Perfusion, keys in fine layers, unlocked": Method(
        Use("bias", settings={"key_lock": 0.0}), BIASES, recipes(EDITS, lock="fine")
    ),
    "Textual Inversion": Method(
        Use(""), (1.0,), recipes([{"word_rate": rate} for rate in (3e-3, 1e-3, 1e-2, 3e-2)], edit_mode="none")
    ),
    "static edit (ROME)": Method(
        Use("strength", mode="static"),
        STRENGTHS[:-1],
        recipes([{}, {"word_rate": 3e-4}, {"output_rate": 0.3}, {"word_rate": 3e-3}], edit_mode="static"),
    ),
    "LoRA": Method(
        Use("strength"),
        STRENGTHS,
        recipes([{}, {"learning_rate": 3e-4}, {"learning_rate": 3e-3}, {"rank": 16}], LORA),
    ),
    "fine-tune": Method(Use("strength"), STRENGTHS[:-1], tuned(0.0)),
    "fine-tune with a prior loss": Method(Use("strength"), STRENGTHS[:-1], tuned(1.0)),
}

AFTERWARDS: dict[str, tuple[Recipe, ...]] = {
    "Perfusion": recipes([{"word_rate": 1e-4}]),
    "LoRA": recipes([{"learning_rate": 1e-2}], LORA),
}
"""Recipes that were tried when the test concepts had been trained by the chosen ones, and that are shown but no longer chosen."""
