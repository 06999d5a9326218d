"""How far two tensors are apart."""

from __future__ import annotations

from torch import Tensor


def worst(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((found.double() - wanted.double()).abs().max() / wanted.double().abs().max())
