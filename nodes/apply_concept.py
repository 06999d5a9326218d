"""Patch a model and its text encoder with concepts."""

import logging

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ..perfusion_core.gated_edit import MODES
from ..perfusion_core.stack import Stack
from . import host
from .io_types import CATEGORY, ConceptType

log = logging.getLogger("perfusion")


def warn_of_layers(stack: Stack, clip: CLIP) -> None:
    """Warn of concepts that were trained on another layer of the text encoder than the one it is set to."""
    layer = host.clip_layer(clip)
    for concept in stack:
        taught = concept.training.get("clip_layer", layer)
        if taught != layer:
            log.warning(
                "%s was trained with layer %s of the text encoder, but this CLIP is set to layer %s, so the concept's gate may "
                "stay closed. Put a CLIP Set Last Layer node set to %s before Apply Concept.",
                concept.trigger,
                taught,
                layer,
                taught,
            )


class PerfusionApply(io.ComfyNode):
    """Patches a model and its text encoder with concepts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionApply",
            display_name="Apply Concept (Perfusion)",
            category=CATEGORY,
            description="Applies concepts to a model and its text encoder. Write their trigger words in an ordinary CLIP Text "
            "Encode.",
            search_aliases=["perfusion", "personalize", "apply concept", "textual inversion", "lora"],
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint's model, with or without LoRAs."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder, with or without LoRAs."),
                ConceptType.Input("concept", tooltip="A concept, or several combined."),
                io.Combo.Input(
                    "edit_mode",
                    options=list(MODES),
                    default=MODES[0],
                    advanced=True,
                    tooltip="exact: prompts without a trigger word give exactly the same image as the base model. paper: the edit "
                    "as published, which slightly changes the image for every prompt. approximate: like paper, but does not "
                    "separate the concepts from each other. static: a plain change to the weights, like a LoRA; it affects every "
                    "prompt, with or without a trigger word.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the concepts; the input model is not changed."),
                io.Clip.Output(display_name="clip", tooltip="The text encoder, which now knows the trigger words."),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, clip: CLIP, concept: Stack, edit_mode: str) -> io.NodeOutput:
        """Apply all concepts whose strength is above 0."""
        active = tuple(one for one in concept if one.strength > 0)
        if not active:
            return io.NodeOutput(model, clip)
        warn_of_layers(active, clip)
        return io.NodeOutput(host.model_with_edit(model, active, edit_mode), host.clip_with_words(clip, active))


NODES = [PerfusionApply]
