"""Where in a picture each concept's edit holds, as attention uses it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Regions:
    """Where each set of edits holds.

    Attributes:
        weights: [B, S, h, w], S sets: outside of all regions, then each region; they sum to 1.
        barred: bool [B, S, N], the words that nothing in a set's place looks at: those of other regions.
    """

    weights: Tensor
    barred: Tensor

    def at(self, shape: tuple[int, int]) -> Tensor:
        """Weights of the pixels of a layer, [B, S, h·w]."""
        return nn.functional.interpolate(self.weights, shape, mode="area").flatten(2)

    def bias(self, s: int, x: Tensor) -> Tensor:
        """What is added to attention's logits in set `s`, [B, 1, N], like `x`."""
        return torch.zeros(self.barred[:, s].shape, dtype=x.dtype, device=x.device).masked_fill(self.barred[:, s], -torch.inf)[
            :, None
        ]


def regions_of(masks: Tensor, stands: Tensor) -> Regions:
    """From R concepts' regions [B, R, h, w] and the places of their words [B, N, R] to what holds where."""
    masks = masks.float().clamp(0, 1)
    masks = masks / masks.sum(1, keepdim=True).clamp(min=1)
    weights = torch.cat([1 - masks.sum(1, keepdim=True), masks], 1)
    words = stands.transpose(1, 2) > 0
    others = 1 - torch.eye(words.shape[1], device=words.device)
    others = torch.cat([torch.ones_like(others[:1]), others]) > 0
    return Regions(weights, (words[:, None] & others[None, :, :, None]).any(2))
