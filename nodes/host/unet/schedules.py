"""The biases that the schedules of concepts result in for one UNet call."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from ....perfusion_core.schedule import ALWAYS, percent_at
from ....perfusion_core.stack import Stack

Biases = tuple[float | None, ...]
"""The bias of each concept in a UNet call, in the order of the stack; None for a concept that does not act in it."""

ToSigma = Callable[[float], Any]
"""The host's `percent_to_sigma`: how far a run is, from 0 to 1 -> the noise level there, a float or a tensor of one."""


def biases_at(stack: Stack, options: Mapping[str, Any], to_sigma: ToSigma | None) -> Biases:
    """Return the biases in a UNet call with these `transformer_options`.

    The call's noise level is that of its first row, as for the host's own patches; all rows of a sampler's call have the same. In a
    call without one, outside of any sampler, every concept acts with its own bias.
    """
    if all(concept.schedule == ALWAYS for concept in stack) or to_sigma is None or options.get("sigmas") is None:
        return tuple(concept.bias for concept in stack)
    sigma = float(options["sigmas"][0])

    def sigma_of(percent: float) -> float:
        return float(to_sigma(percent))

    percent = functools.cache(lambda: percent_at(sigma, sigma_of))
    found: list[float | None] = []
    for concept in stack:
        schedule = concept.schedule
        if not schedule.holds(sigma, sigma_of):
            found.append(None)
        else:
            found.append(schedule.bias(concept.bias, percent()) if schedule.bias_change else concept.bias)
    return tuple(found)
