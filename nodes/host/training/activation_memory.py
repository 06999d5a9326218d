"""Activation memory of a backward pass: measured by a forward pass that saves nothing, and reduced by recomputing blocks."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from ..model.families import FAMILIES
from ..unet.projection_hooks import replace_forward

BLOCKS = tuple({block for family in FAMILIES for block in family.blocks})
"""The parts of models that are recomputed when memory is short; they contain most of the activations."""
CHANGING = tuple({block for family in FAMILIES if family.in_place for block in family.blocks})
"""Those of them that change their own input."""


@dataclass
class SavedBytes:
    """Bytes saved for a backward pass.

    Attributes:
        fixed: bytes that do not depend on the number of images, such as copies of weights.
        growing: bytes that grow with the number of images.
    """

    fixed: int = 0
    growing: int = 0

    def of(self, count: int) -> int:
        """Return the bytes for `count` times as many images."""
        return self.fixed + count * self.growing


@dataclass
class MemoryNeed:
    """Memory that a forward pass saves for its backward pass, in addition to the weights.

    Attributes:
        outside: saved outside of all BLOCKS.
        blocks: saved in each block.
        inputs: bytes of the blocks' inputs.
    """

    outside: SavedBytes = field(default_factory=SavedBytes)
    blocks: list[SavedBytes] = field(default_factory=list)
    inputs: int = 0

    def bytes(self, count: int, twice: bool) -> int:
        """Return the bytes for `count` times as many images; with `twice`, if blocks are recomputed, one at a time."""
        return self.outside.of(count) + (count * self.inputs + self.largest(count) if twice else sum(self._blocks(count)))

    def largest(self, count: int) -> int:
        """Return the bytes of only the largest block for `count` times as many images."""
        return max(self._blocks(count))

    def _blocks(self, count: int) -> list[int]:
        return [block.of(count) for block in self.blocks]


@contextlib.contextmanager
def count_saved_bytes(unet: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[MemoryNeed]:
    """Count what autograd would save within the context without saving it, so that no backward pass can follow.

    `weights` are those that `unet` computes with. They are not counted; copies of them are recognised by their shapes.
    """
    need, inside, handles = MemoryNeed(), [], []
    own = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    shapes = {tuple(sorted(tensor.shape)) for tensor in weights.values() if tensor.ndim > 1}
    alive: dict[int, StorageWeakRef] = {}

    def count(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in own or (address in alive and not alive[address].expired()):
            return
        alive[address] = StorageWeakRef(storage)
        kept = inside[-1] if inside else need.outside
        if tuple(sorted(tensor.shape)) in shapes:
            kept.fixed += storage.nbytes()
        else:
            kept.growing += storage.nbytes()

    def refuse(_: None) -> Tensor:
        raise RuntimeError("nothing was kept for this backward pass")

    def enter(block: nn.Module, args: tuple) -> None:
        need.inputs += args[0].untyped_storage().nbytes()
        need.blocks.append(SavedBytes())
        inside.append(need.blocks[-1])

    def leave(block: nn.Module, args: tuple, output: Tensor) -> None:
        inside.pop()

    try:
        for block in blocks_of(unet).values():
            handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
        with torch.autograd.graph.saved_tensors_hooks(count, refuse):
            yield need
    finally:
        for handle in handles:
            handle.remove()


def blocks_of(unet: nn.Module) -> dict[str, nn.Module]:
    """Return a UNet's BLOCKS by name."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, BLOCKS)}


class _Alone(nn.Module):
    """Runs the forward of a block's class, even while the block's own forward is replaced."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the output of the block."""
        return type(self.block).forward(self.block, *args, **kwargs)


@contextlib.contextmanager
def activation_checkpointing(
    unet: nn.Module, weights: Mapping[str, Tensor], again: Callable[[], contextlib.AbstractContextManager]
) -> Iterator[None]:
    """Let a UNet's blocks save only their inputs within the context, and recompute the blocks in the backward pass.

    Args:
        unet: runs with `weights` within the context.
        weights: its weights by name; each block is given its own, since the recomputation happens outside of the UNet's call.
        again: creates the context of the recomputation.
    """
    blocks = blocks_of(unet)

    def wrapped(name: str, block: nn.Module) -> Callable[..., Tensor]:
        own = {f"block.{k.removeprefix(name + '.')}": v for k, v in weights.items() if k.startswith(name + ".")}
        alone = _Alone(block)

        def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            # A copy, because the block changes its input and reads it again.
            x = x.clone() if isinstance(block, CHANGING) else x
            return torch.func.functional_call(alone, own, (x, *args), kwargs)

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            return checkpoint(
                run,
                *args,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=lambda: (contextlib.nullcontext(), again()),
                **kwargs,
            )

        return forward

    with contextlib.ExitStack() as opened:
        for name, block in blocks.items():
            opened.enter_context(replace_forward(block, wrapped(name, block)))
        yield


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a device but for those that the host leaves to others, or of the machine's memory for the CPU."""
    reserved = 0 if device.type == "cpu" else comfy.model_management.extra_reserved_memory()
    return int(comfy.model_management.get_free_memory(device) - reserved)
