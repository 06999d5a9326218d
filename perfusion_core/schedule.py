"""When a concept acts in a sampling run, and how its bias changes over that time.

The percent of a run is how far it has come from noise, 0, to picture, 1: 0 at the model's highest noise level, 1 without noise, and
in between as the model defines it (SD's models: the share of their 1000 timesteps).
"""

from collections.abc import Callable
from dataclasses import dataclass

from . import PerfusionError

HALVINGS = 40
"""Bisections by which a percent is found: to within 1e-12."""


@dataclass(frozen=True)
class Schedule:
    """The part of a run in which a concept acts, and the change of its bias from the start of that part to its end.

    Attributes:
        start: percent from which the concept acts, 0 to 1.
        end: percent up to which it acts, above `start` and at most 1; 1 includes the last step.
        bias_change: what is added to the bias by `end`, in proportion to how much of the part has passed.

    Raises:
        PerfusionError: there is no part of a run between `start` and `end`.
    """

    start: float = 0.0
    end: float = 1.0
    bias_change: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise PerfusionError(
                f"A schedule from {self.start:g} to {self.end:g} is not possible; start_percent must be at least 0 and below "
                "end_percent, which must be at most 1."
            )

    def holds(self, sigma: float, sigma_of: Callable[[float], float]) -> bool:
        """Return whether a call at noise level `sigma` is in the part; `sigma_of` maps a percent to the noise level there."""
        begun = self.start == 0 or sigma <= sigma_of(self.start)
        return begun and (self.end == 1 or sigma > sigma_of(self.end))

    def bias(self, bias: float, percent: float) -> float:
        """Return the bias at a percent of the run, of a concept whose bias is `bias` at the start: linear, constant outside."""
        passed = (percent - self.start) / (self.end - self.start)
        return bias + self.bias_change * min(max(passed, 0.0), 1.0)


ALWAYS = Schedule()
"""The schedule of a concept that acts throughout a run, with a constant bias."""


def percent_at(sigma: float, sigma_of: Callable[[float], float]) -> float:
    """Return the percent, between 0 and 1, at which the falling `sigma_of` has come down to `sigma`."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sigma_of(middle) >= sigma else (low, middle)
    return low
