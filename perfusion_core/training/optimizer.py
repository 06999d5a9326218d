"""Adam with one second moment shared by all elements of an output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .. import PerfusionError


class Adam:
    """Adam (β 0.9 and 0.999, no weight decay) over words and target outputs, which are updated in place.

    The elements of an output share one second moment, the mean over them (as in Adam-mini, arXiv 2406.16793). With a second moment
    per element, elements with small gradients would move as far as those with large ones, and shapes would dissolve.
    """

    def __init__(self, words: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Initialise the moments to 0; the parameters are float32, of any shape."""
        self.parameters = [*words, *outputs]
        self.words = len(words)
        self.moments = [torch.zeros_like(tensor) for tensor in self.parameters for _ in range(2)]
        self.steps = 0

    def step(self, gradients: Sequence[Tensor], word_rate: float, output_rate: float) -> None:
        """Perform one step, given one gradient for each parameter."""
        steps = self.steps + 1
        for i, (tensor, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            first, second = self.moments[2 * i : 2 * i + 2]
            first.lerp_(gradient, 0.1)
            square = gradient.square()
            second.lerp_(square if i < self.words else square.mean().expand_as(square), 0.001)
            rate = word_rate if i < self.words else output_rate
            tensor -= rate * (first / (1 - 0.9**steps)) / ((second / (1 - 0.999**steps)).sqrt() + 1e-8)
        self.steps = steps

    def state_dict(self) -> dict[str, Tensor]:
        """Return the first and second moment of each parameter in turn, by name; the step count is kept by the training state."""
        return {f"moment.{i:04}": moment for i, moment in enumerate(self.moments)}

    def load_state_dict(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Restore the result of `state_dict` after `steps` steps; raise PerfusionError if it does not match the parameters."""
        moments = [state[name] for name in sorted(state)]
        if [each.shape for each in moments] != [each.shape for each in self.moments]:
            raise PerfusionError("The training checkpoint is incomplete.")
        self.moments, self.steps = moments, steps
