"""The distance between two tensors."""

from __future__ import annotations

from torch import Tensor


def worst(found: Tensor, wanted: Tensor) -> float:
    """Return the largest absolute difference, relative to the largest absolute value of `wanted`."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())
