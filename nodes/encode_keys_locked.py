"""Encode prompts under global key-locking."""

from comfy.sd import CLIP
from comfy_api.latest import io

from . import host
from .io_types import CATEGORY


class PerfusionTextEncode(io.ComfyNode):
    """Encodes a prompt as a conditioning whose keys are those of the superclass prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionTextEncode",
            display_name="Text Encode, Keys Locked (Perfusion)",
            category=CATEGORY,
            description="Encodes a prompt with global key-locking: the parts of the image that words attend to are determined by "
            "a version of the prompt in which each trigger word is replaced by its plain word. CLIP Text Encode locks only the "
            "concept's own keys. You can use both nodes in one graph.",
            search_aliases=["perfusion", "global key-locking", "clip text encode", "prompt"],
            inputs=[
                io.Clip.Input("clip", tooltip="From Apply Concept, which passes on the trigger words."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, with trigger words. Without any, the result is the same as from CLIP Text Encode.",
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning", tooltip="For a sampler, or for conditioning nodes.")],
        )

    @classmethod
    def execute(cls, clip: CLIP, text: str) -> io.NodeOutput:
        """Encode the prompt."""
        return io.NodeOutput(host.encode_locked(clip, text))


NODES = [PerfusionTextEncode]
