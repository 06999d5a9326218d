"""Nodes that patch a MODEL in the ways of other packs, for graphs of tests; a server's base directory gets a copy of this file.

They use what ComfyUI offers to packs and nothing of Perfusion. Their numbers come from a seed and mean nothing.
"""

from __future__ import annotations

import comfy.model_management
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy_api.torch_helpers import set_torch_compile_wrapper
from torch import Tensor

BLOCKS = [("input", 1), ("input", 3), ("middle", 0), *(("output", i) for i in range(4))]
"""The demo base's blocks that have cross-attention."""


def seeded(*shape: int) -> Tensor:
    """Numbers that are the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Patch:
    """MODEL -> MODEL."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",)}}


class MoreTokens(Patch):
    """Appends tokens to what cross-attention reads, as reference and image prompts in the text's own space do."""

    def patch(self, model: ModelPatcher) -> tuple[ModelPatcher]:
        def append(n: Tensor, context: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
            more = seeded(1, 4, context.shape[-1]).to(context).expand(len(context), -1, -1)
            return n, torch.cat([context, more], 1), torch.cat([value, more], 1)

        model = model.clone()
        model.set_model_attn2_patch(append)
        return (model,)


class MoreOutput(Patch):
    """Adds to what cross-attention gives."""

    def patch(self, model: ModelPatcher) -> tuple[ModelPatcher]:
        model = model.clone()
        model.set_model_attn2_output_patch(lambda n, options: n + 0.2 * n.std() * seeded(n.shape[-1]).to(n))
        return (model,)


class SecondAttention(Patch):
    """Computes cross-attention itself and adds one to tokens of its own, as IP-Adapter does."""

    def patch(self, model: ModelPatcher) -> tuple[ModelPatcher]:
        def both(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
            heads = options["n_heads"]
            own = seeded(2, 1, 4, k.shape[-1]).to(k).expand(-1, len(k), -1, -1)
            return optimized_attention(q, k, v, heads) + 0.3 * optimized_attention(q, own[0], own[1], heads)

        model = model.clone()
        for block in BLOCKS:
            model.set_model_attn2_replace(both, *block)
        return (model,)


class OwnAttention(Patch):
    """Puts an attention of its own in place of the host's, as packs with faster kernels do; this one looks half as sharply."""

    def patch(self, model: ModelPatcher) -> tuple[ModelPatcher]:
        model = model.clone()
        options = model.model_options["transformer_options"]
        options["optimized_attention_override"] = lambda func, q, *args, **kwargs: func(q / 2, *args, **kwargs)
        return (model,)


class Compiled(Patch):
    """As the host's TorchCompileModel, without the minutes that a compiler takes: the graph is captured and run as it is."""

    def patch(self, model: ModelPatcher) -> tuple[ModelPatcher]:
        model = model.clone()
        set_torch_compile_wrapper(model=model, backend="eager")
        return (model,)


class OnAnotherDevice(Patch):
    """The clone that the host makes of a MODEL for each further graphics card; here for the processor again."""

    def patch(self, model: ModelPatcher) -> tuple[ModelPatcher]:
        return (model.deepclone_multigpu(new_load_device=model.load_device),)


class OutOfMemoryOnce(Patch):
    """Runs out of memory in the middle of the UNet, the first time that any graph comes there."""

    spent = False

    def patch(self, model: ModelPatcher) -> tuple[ModelPatcher]:
        def fail(n: Tensor, options: dict) -> Tensor:
            if options["block"] == ("middle", 0) and not OutOfMemoryOnce.spent:
                OutOfMemoryOnce.spent = True
                raise comfy.model_management.OOM_EXCEPTION("out of memory, says a test")
            return n

        model = model.clone()
        model.set_model_attn2_output_patch(fail)
        return (model,)


NODE_CLASS_MAPPINGS = {
    f"Test{kind.__name__}": kind
    for kind in (MoreTokens, MoreOutput, SecondAttention, OwnAttention, Compiled, OnAnotherDevice, OutOfMemoryOnce)
}
