"""Cross-attention maps, softmax(q kᵀ / √c) of every pixel over the tokens, and operations on them.

Shapes: B pictures, h·w pixels of a layer, N tokens, c channels of a head; all in float32.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from . import PerfusionError


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Split the heads: [B, n, heads·c] -> [B, heads, n, c]."""
    return rearrange(x, "b n (heads c) -> b heads n c", heads=heads)


def merge_heads(x: Tensor) -> Tensor:
    """Merge the heads: [B, heads, n, c] -> [B, n, heads·c]."""
    return rearrange(x, "b heads n c -> b n (heads c)")


def attention(query: Tensor, keys: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Return the attention maps, float32 [B, heads, h·w, N], of queries [B, h·w, heads·c] and keys [B, N, heads·c].

    `bias` [B, 1, N] is added to the logits.
    """
    with torch.autocast(query.device.type, enabled=False):
        q, k = (split_heads(each.float(), heads) for each in (query, keys))
        logits = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        return (logits if bias is None else logits + bias.float()[:, None]).softmax(3)


def weighted_sum(parts: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return Σ_s weights_s · parts_s for parts [B, (heads,) h·w, n] and weights [B, S, h·w]."""
    total = torch.zeros_like(parts[0], dtype=torch.float32)
    for s, part in enumerate(parts):
        weight = weights[:, s, :, None]
        total += (weight if part.ndim == 3 else weight[:, None]) * part
    return total


def inject_maps(maps: Tensor, source: Tensor, columns: Tensor) -> Tensor:
    """Return maps [B, heads, h·w, N] with the maps of chosen tokens taken from `source` (Prompt-to-Prompt, arXiv 2208.01626, §3).

    Args:
        maps: [B, heads, h·w, N], of the picture itself.
        source: [b, heads, h·w, N'], of another picture; B is a multiple of b.
        columns: int [B, N], the token of `source` whose map replaces the token's own; -1 to keep its own. A map that replaces
            several, as where a prompt is repeated, is divided among them.
    """
    whole = source.repeat(len(maps) // len(source), 1, 1, 1)
    index = columns.clamp(min=0)[:, None, None].expand(-1, *maps.shape[1:3], -1)
    times = (columns[:, :, None] == columns[:, None]).sum(2)[:, None, None]
    return torch.where(columns[:, None, None] >= 0, whole.gather(3, index) / times, maps)


def layer_resolution(pixels: int, height: int, width: int) -> tuple[int, int]:
    """Return height and width of a layer of `pixels` pixels, in a UNet on latents of `height` × `width`.

    Raises:
        PerfusionError: no number of halvings of the latents gives that many pixels.
    """
    for level in range(8):
        h, w = -(-height // 2**level), -(-width // 2**level)
        if h * w == pixels:
            return h, w
    raise PerfusionError(
        f"Regions and attention maps work only if the resolution of each layer is that of the latents ({width} × {height}), halved "
        f"some number of times, but one layer has {pixels} pixels. Remove the patch that changes the model's resolution."
    )


def refine_with_self_attention(looked: Tensor, affinity: Tensor, rounds: int = 4) -> Tensor:
    """Return attention maps [B, p] refined to the outlines of their objects: A^rounds · map, each rescaled to 0…1.

    `affinity` A: [B, p, p], the layers' mean self-attention, whose rows sum to 1. Pixels of the same object attend to each other.
    """
    for _ in range(rounds):
        looked = (affinity @ looked[..., None])[..., 0]
    low, high = looked.amin(1, keepdim=True), looked.amax(1, keepdim=True)
    return (looked - low) / (high - low).clamp(min=1e-12)


def threshold(values: Tensor, bins: int = 64) -> float:
    """Return the threshold that best divides values in 0…1 in two: the one with the largest between-class variance (Otsu 1979)."""
    counts = torch.histc(values.float().cpu(), bins, 0, 1).double()
    centres = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    below, sums = counts.cumsum(0), (counts * centres).cumsum(0)
    above = below[-1] - below
    between = (sums[-1] * below / below[-1] - sums).square() / (below * above).clamp(min=1e-12)
    # All thresholds within a gap between the values are equally good: take the middle one.
    best = (between[:-1] >= between[:-1].max() * (1 - 1e-9)).nonzero().flatten().double()
    return float(best.mean() + 1) / bins


def soft_mask(looked: Tensor, softness: float = 0.08) -> Tensor:
    """Return a soft mask [h, w], from 0 to 1, of a map [h, w] in 0…1: about ½ where the map crosses its `threshold`."""
    mask = torch.sigmoid((looked - threshold(looked)) / softness)
    low, high = mask.min(), mask.max()
    return (mask - low) / (high - low).clamp(min=1e-12)
