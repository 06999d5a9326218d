"""Show where words attend while pictures are sampled, and keep one picture's layout in another."""

import re

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor
from torch.nn.functional import interpolate

from ..perfusion_core import PerfusionError
from ..perfusion_core.prompts import word_key
from . import host
from .charts import overlay
from .io_types import CATEGORY, AttentionType
from .picture_grid import labelled_grid

MOST = 12
"""Maximum number of words shown if none are requested."""


class PerfusionWatchAttention(io.ComfyNode):
    """Attaches an attention recorder to a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionWatchAttention",
            display_name="Watch Attention (Perfusion)",
            category=CATEGORY,
            description="Records which parts of the image each word of the prompt attends to while any sampler runs with this "
            "model; the images stay bit-identical. View the result with Show Attention, or use it in Keep Layout.",
            search_aliases=["perfusion", "attention map", "cross attention", "daam", "heatmap"],
            inputs=[
                io.Model.Input("model", tooltip="The model to watch, from Apply Concept or any other."),
                io.Boolean.Input(
                    "each_step",
                    default=False,
                    tooltip="Also keep the maps of each step separately. Needs more memory.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The watched model, for a sampler."),
                AttentionType.Output(
                    display_name="attention", tooltip="For Show Attention and Keep Layout. Empty until the sampler has run."
                ),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, each_step: bool = False) -> io.NodeOutput:
        """Return the watched model and its recorder."""
        recorder = host.Recorder(each_step)
        return io.NodeOutput(host.model_watched(model, recorder), recorder)


class PerfusionShowAttention(io.ComfyNode):
    """Renders recorded attention as overlays and masks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionShowAttention",
            display_name="Show Attention (Perfusion)",
            category=CATEGORY,
            description="Overlays each image with maps of what the chosen words of its prompt attended to, averaged over layers, "
            "heads and steps. The labels show each word's share of all attention and how far a concept's gate opens at that word.",
            search_aliases=["perfusion", "attention map", "overlay", "daam", "heatmap"],
            inputs=[
                AttentionType.Input("attention", tooltip="From Watch Attention."),
                io.Latent.Input("samples", tooltip="The sampler's latents, sampled with the watched model."),
                io.Image.Input("images", tooltip="The same latents, decoded."),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words of the prompt, separated by commas, such as <my-teddy>, grass. Empty: the first twelve.",
                ),
                io.Boolean.Input(
                    "each_step",
                    default=False,
                    advanced=True,
                    tooltip="Show one row for each step of the first image. each_step in Watch Attention must be on as well.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="overlays", tooltip="One labelled image, with a row for each image or step."),
                io.Mask.Output(display_name="masks", tooltip="The maps, row by row, each scaled to a maximum of 1."),
            ],
        )

    @classmethod
    def execute(cls, attention: host.Recorder, samples: dict, images: Tensor, words: str, each_step: bool = False) -> io.NodeOutput:
        """Draw an overlay and a mask for each chosen word, in one row per picture or step."""
        run = attention.run_of(samples["samples"])
        chosen = requested_words(words, run)
        if each_step and not attention.each_step:
            raise PerfusionError("The steps were not recorded separately; switch on each_step in Watch Attention as well.")
        levels = run.levels() if each_step else [None]
        maps = torch.stack([torch.stack([run.map_of(word, level) for word in chosen], 1) for level in levels])
        pictures = images[..., :3]
        if maps.shape[1] != len(pictures):
            raise PerfusionError(
                f"There are {maps.shape[1]} latents but {len(pictures)} images; connect the images that these latents decode to."
            )
        shown = maps[:, 0] if each_step else maps[0]
        rows = [f"step {i + 1}" if each_step else f"image {i + 1}" for i in range(len(shown))]
        large = interpolate(shown, pictures.shape[1:3], mode="bicubic", antialias=True).clamp(min=0)
        large = large / large.amax((2, 3), keepdim=True).clamp(min=1e-12)
        under = pictures[:1].expand(len(rows), -1, -1, -1) if each_step else pictures
        drawn = torch.stack([overlay(picture, mask) for picture, masks in zip(under, large, strict=True) for mask in masks])
        labels = [word_label(word, float(shown[:, i].mean()), run) for i, word in enumerate(chosen)]
        return io.NodeOutput(labelled_grid(drawn, rows, labels), large.flatten(0, 1))


def requested_words(text: str, run: host.SamplingRun) -> list[str]:
    """Return the requested words as the prompts spell them; without a request, the first MOST words other than START.

    Raises:
        PerfusionError: if a word is in no prompt, or if no prompt's encoding records its words.
    """
    there = run.words()
    if not there:
        raise PerfusionError(
            "The prompt's encoding does not record its words; encode the prompt with a CLIP from Apply Concept, or with Text "
            "Encode, Keys Locked."
        )
    asked = [word_key(word) for word in re.findall(r"[^\s,;]+", text)]
    spelled = {word_key(word): word for word in there}
    missing = [word for word in asked if word not in spelled]
    if missing:
        raise PerfusionError(
            f"None of the prompts for this image contains the word {missing[0][:80]!r}; their words are {', '.join(there)[:400]}."
        )
    return [spelled[word] for word in asked] or [word for word in there if word != host.START][:MOST]


def word_label(word: str, share: float, run: host.SamplingRun) -> str:
    """Return the label of a word: the word, its share of attention and, for a trigger word, its gate."""
    gate = run.gate_of(word)
    return f"{word}  {100 * share:.1f}%" + ("" if gate is None else f"  gate {gate:.2f}")


class PerfusionKeepLayout(io.ComfyNode):
    """Patches a model so that it keeps the layout of a recorded picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionKeepLayout",
            display_name="Keep Layout (Perfusion)",
            category=CATEGORY,
            description="Generates a second image in the layout of a first one (Prompt-to-Prompt): words that both prompts share "
            "attend to the same places as in the first image, while changed words find their own. Use the same seed, sampler and "
            "steps for both. Steps between start and end take twice as long.",
            search_aliases=["perfusion", "prompt to prompt", "p2p", "layout", "attention injection"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model for the next image, from Apply Concept. If it comes from Watch Attention, its attention is "
                    "no longer recorded from here on.",
                ),
                AttentionType.Input("attention", tooltip="From the Watch Attention node on the first image's model."),
                io.Latent.Input("samples", tooltip="The first image's latents, exactly as its sampler returned them."),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="When to start keeping the layout, on the way from noise (0) to image (1).",
                ),
                io.Float.Input(
                    "end",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="When to stop keeping the layout. Stopping earlier lets the concept keep more of its own shape.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For the sampler of the next image.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, attention: host.Recorder, samples: dict, start: float, end: float) -> io.NodeOutput:
        """Return the patched model."""
        if start >= end:
            raise PerfusionError(f"The layout cannot be kept from {start:g} to {end:g}; start must be below end.")
        return io.NodeOutput(host.model_with_layout(model, attention.run_of(samples["samples"]), start, end))


NODES = [PerfusionWatchAttention, PerfusionShowAttention, PerfusionKeepLayout]
