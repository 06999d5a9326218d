"""Muon (Jordan et al., 2024): steepest descent for weight matrices under the spectral norm.

Both of the demo's networks learn several times as fast with Muon as with Adam: an autoencoder with TAESD's architecture reached
21.5 dB in 90 seconds, against 18.1 dB with Adam.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

ADAMS_SIZE = 0.2
"""Typical RMS of Adam's updates as a share of its rate (arXiv 2502.16982); Muon's are scaled to it so that one rate serves both."""
SMALLEST = 32
"""Matrices with fewer rows or columns, and parameters that are not matrices, are left to AdamW."""


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximate the nearest matrix with orthonormal rows or columns by a Newton-Schulz iteration in bfloat16.

    Args:
        matrix: [m, n].
        steps: Number of iterations.

    Returns:
        [m, n] float32.
    """
    found = matrix.bfloat16()
    wide = len(found) <= found.shape[1]
    found = found if wide else found.T
    found = found / (found.norm() + 1e-7)
    for _ in range(steps):
        square = found @ found.T
        found = 3.4445 * found + (2.0315 * square @ square - 4.7750 * square) @ found
    return (found if wide else found.T).float()


class Muon:
    """Optimise matrices and convolution kernels with Muon, and the other parameters with AdamW."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float = 0.0, momentum: float = 0.95) -> None:
        every = list(parameters)
        self.matrices = [each for each in every if each.ndim > 1 and min(len(each), each[0].numel()) >= SMALLEST]
        taken = set(map(id, self.matrices))
        rest = [each for each in every if id(each) not in taken]
        self.adam = torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=decay, fused=True) if rest else None
        self.means = [torch.zeros_like(each) for each in self.matrices]
        self.decay, self.momentum = decay, momentum

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Take one step with learning rate `rate`, then clear the gradients."""
        if self.adam:
            self.adam.param_groups[0]["lr"] = rate
            self.adam.step()
            self.adam.zero_grad()
        for weight, mean in zip(self.matrices, self.means, strict=True):
            if weight.grad is None:
                continue
            mean.lerp_(weight.grad, 1 - self.momentum)
            ahead = weight.grad.lerp_(mean, self.momentum).flatten(1)
            moved = orthogonal(ahead).reshape(weight.shape)
            weight.mul_(1 - rate * self.decay).add_(moved, alpha=-rate * ADAMS_SIZE * max(ahead.shape) ** 0.5)
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict`."""
        return {"adam": self.adam and self.adam.state_dict(), "means": self.means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of another instance."""
        if self.adam:
            self.adam.load_state_dict(state["adam"])
        for mean, stored in zip(self.means, state["means"], strict=True):
            mean.copy_(stored)
