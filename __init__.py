"""Perfusion for ComfyUI: teach a text-to-image model a concept from a few pictures, in a file of tens of kilobytes."""

from comfy_api.latest import ComfyExtension, io

from .nodes import apply, concepts, exports, train


class PerfusionExtension(ComfyExtension):
    """Registers the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack."""
        return [*concepts.NODES, *apply.NODES, *train.NODES, *exports.NODES]


async def comfy_entrypoint() -> PerfusionExtension:
    """Where the host enters."""
    return PerfusionExtension()
