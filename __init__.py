"""Perfusion for ComfyUI: teach a text-to-image model a concept from a few pictures, in a file of tens of kilobytes."""

from comfy_api.latest import ComfyExtension, io

from .nodes import apply, attention, bias, concepts, covariance, exports, host, imports, inspect, objects, prompts, sweep, train

WEB_DIRECTORY = "web"
"""What the page loads, and where it finds each node's help, docs/NODE_ID.md."""

MODULES = (apply, attention, bias, concepts, covariance, exports, imports, inspect, objects, prompts, sweep, train)


class PerfusionExtension(ComfyExtension):
    """Registers the nodes."""

    async def on_load(self) -> None:
        """Lets the page fetch concept files, and the words to find them by."""
        host.serve("/perfusion/file", concepts.content_of)
        host.serve("/perfusion/words", concepts.words)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes of the pack."""
        return [node for module in MODULES for node in module.NODES]


async def comfy_entrypoint() -> PerfusionExtension:
    """Where the host enters."""
    return PerfusionExtension()
