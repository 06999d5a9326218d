"""Adam, with one second moment for all elements of an output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .. import PerfusionError


class Adam:
    """Adam (β 0.9 and 0.999, no decay) over words and target outputs, which it changes in place.

    An output's elements share one second moment, the mean of theirs (as Adam-mini has it, arXiv 2406.16793): scaled each by its
    own, those that gradients hardly ask for would move as far as those that they ask for most, and shapes melt.
    """

    def __init__(self, words: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Before the first step; all float32, of any shape."""
        self.parameters = [*words, *outputs]
        self.words = len(words)
        self.moments = [torch.zeros_like(tensor) for tensor in self.parameters for _ in range(2)]
        self.steps = 0

    def step(self, gradients: Sequence[Tensor], word_rate: float, output_rate: float) -> None:
        """One step against the gradients, one for each parameter."""
        self.steps += 1
        for i, (tensor, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            first, second = self.moments[2 * i : 2 * i + 2]
            first.lerp_(gradient, 0.1)
            square = gradient.square()
            second.lerp_(square if i < self.words else square.mean().expand_as(square), 0.001)
            rate = word_rate if i < self.words else output_rate
            tensor -= rate * (first / (1 - 0.9**self.steps)) / ((second / (1 - 0.999**self.steps)).sqrt() + 1e-8)

    def state_dict(self) -> dict[str, Tensor]:
        """First and second moment of each parameter in turn, by name; the steps are those of the training."""
        return {f"moment.{i:04}": moment for i, moment in enumerate(self.moments)}

    def load_state_dict(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Go on from what `state_dict` gave after so many steps; raises PerfusionError where it does not fit the parameters."""
        moments = [state[name] for name in sorted(state)]
        if [each.shape for each in moments] != [each.shape for each in self.moments]:
            raise PerfusionError("This training checkpoint is not whole; delete it and train anew.")
        self.moments, self.steps = moments, steps
