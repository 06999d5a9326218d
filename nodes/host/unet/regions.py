"""Where in an image each concept's edit applies, in the form that attention uses."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Regions:
    """Where each set of edits applies.

    Attributes:
        weights: [B, S, h, w], for S sets: that outside of all regions, then that of each region; they sum to 1 over the sets.
        barred: bool [B, S, N], the tokens that a set's attention excludes: the words of other regions.
    """

    weights: Tensor
    barred: Tensor

    @functools.cached_property
    def excluding(self) -> list[bool]:
        """Whether each set excludes any token; read from the device once."""
        return self.barred.any(2).any(0).tolist()

    def at(self, shape: tuple[int, int]) -> Tensor:
        """Return the weights at a layer's resolution, [B, S, h·w]."""
        return nn.functional.interpolate(self.weights, shape, mode="area").flatten(2)

    def bias(self, s: int, x: Tensor) -> Tensor:
        """Return the bias added to the attention logits of set `s`, [B, 1, N], with the dtype and device of `x`."""
        return torch.zeros(self.barred[:, s].shape, dtype=x.dtype, device=x.device).masked_fill(self.barred[:, s], -torch.inf)[
            :, None
        ]


def regions_of(masks: Tensor, stands: Tensor) -> Regions:
    """Return where each set of edits applies, from R concepts' regions [B, R, h, w] and their words' positions [B, N, R]."""
    masks = masks.float().clamp(0, 1)
    masks = masks / masks.sum(1, keepdim=True).clamp(min=1)
    weights = torch.cat([1 - masks.sum(1, keepdim=True), masks], 1)
    words = stands.transpose(1, 2) > 0
    others = 1 - torch.eye(words.shape[1], device=words.device)
    others = torch.cat([torch.ones_like(others[:1]), others]) > 0
    return Regions(weights, (words[:, None] & others[None, :, :, None]).any(2))
