"""Perfusion for ComfyUI: teach a text-to-image model a concept from a few pictures, in a file of tens of kilobytes."""

from comfy_api.latest import ComfyExtension, io

from .nodes import (
    apply_concept,
    attention,
    compare_settings,
    concepts,
    encode_keys_locked,
    export_concept,
    find_bias,
    find_object,
    host,
    import_concept,
    inspect_gates,
    many_concepts,
    measure_text_encoder,
)
from .nodes.training import checkpoint_preset, options, train_concept

WEB_DIRECTORY = "web"
"""Folder that the host serves to the page: its scripts, and each node's help in docs/NODE_ID.md."""

MODULES = (
    apply_concept,
    attention,
    find_bias,
    concepts,
    many_concepts,
    measure_text_encoder,
    export_concept,
    import_concept,
    inspect_gates,
    find_object,
    encode_keys_locked,
    compare_settings,
    train_concept,
    options,
)


class PerfusionExtension(ComfyExtension):
    """The extension that registers the pack's nodes with ComfyUI."""

    async def on_load(self) -> None:
        """Register the routes by which the page fetches what it shows of concepts, and the preset that suits a checkpoint."""
        host.serve("/perfusion/file", concepts.content_of)
        host.serve("/perfusion/words", concepts.words)
        host.serve("/perfusion/picture", concepts.picture_of, "image/jpeg", kept=60)
        host.serve("/perfusion/preset", checkpoint_preset.preset_for)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return all nodes of the pack."""
        return [node for module in MODULES for node in module.NODES]


async def comfy_entrypoint() -> PerfusionExtension:
    """Return the extension; the entry point that ComfyUI calls."""
    return PerfusionExtension()
