"""A run that keeps its keys and values from step to step, beside the same run that keeps nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor


def kept_and_not(sampling_run: ModuleType, projected: ModuleType, layers: int, run: Callable[[], Tensor]) -> tuple[bool, float]:
    """Whether both are the same to the bit; and how often keys or values of each of the `layers` were made by the first."""
    usual, made = sampling_run.with_applied, projected.Projections._made
    calls: list[str] = []

    def counted(self: object, *args: object) -> list:
        calls.append(args[1])
        return made(self, *args)

    projected.Projections._made = counted
    once = run()
    projected.Projections._made = made
    # The state that the MODEL carries keeps nothing; only that of a run does.
    sampling_run.with_applied = lambda extra_args, _: extra_args
    again = run()
    sampling_run.with_applied = usual
    return torch.equal(once, again), len(calls) / layers / 2
