"""How much of a training step is computed at once, by the memory that there is."""

import logging
from dataclasses import dataclass

from torch import Tensor

from ...perfusion_core.training.loop import rehearse
from ...perfusion_core.training.settings import Settings
from ...perfusion_core.training.state import TrainingState
from .. import host

log = logging.getLogger("perfusion")

GB = 2**30
AUTO = "auto"
CARDS = {"6 GB": 6 * GB, "8 GB": 8 * GB, "12 GB": 12 * GB}
"""Preset -> the memory of a card that training is to fit on."""
ELSEWHERE = GB // 2
"""Of a card's memory, what others take: the driver, and what is shown on screens."""
ROOM, BLOCKS = 1.1, 2
"""A backward pass needs as many times what is kept for it, and what so many times the largest block keeps, on its way."""


@dataclass(frozen=True)
class Portion:
    """Pictures that are computed at once, whether parts of the model are computed twice, and the bytes that this needs."""

    micro: int
    twice: bool
    bytes: int


def portion(need: host.MemoryNeed, free: int, at_once: int) -> Portion:
    """The most pictures at once, of `at_once` and its halves, that fit into `free` bytes.

    Parts are computed twice only where fewer than two pictures would fit otherwise. Where nothing fits, it is one, twice.
    """
    halves = [at_once]
    while halves[-1] > 1:
        halves.append(halves[-1] // 2)

    def takes(micro: int, twice: bool) -> int:
        return round(ROOM * need.bytes(micro, twice)) + BLOCKS * need.largest(micro)

    tried = [Portion(micro, twice, takes(micro, twice)) for twice in (False, True) for micro in halves]
    wanted = [each for each in tried if each.twice or each.micro >= min(2, at_once)]
    return next((each for each in wanted if each.bytes <= free), tried[-1])


def fit(
    model: host.TrainableModel, state: TrainingState, given: tuple[Tensor, Tensor, Tensor], settings: Settings, memory: str
) -> tuple[int, bool]:
    """How many pictures are computed at once and whether parts are computed twice, for a session; told in the log.

    `memory` is AUTO, or one of CARDS.
    """
    free = host.free_memory(model.device)
    if memory in CARDS:
        free = min(free, CARDS[memory] - ELSEWHERE - model.bytes())
    latents, _, inverse = given
    need = model.need(state.word, lambda: rehearse(model, state, latents, inverse, settings))
    found = portion(need, free, settings.micro)
    log.info(
        "Training computes %d pictures at once%s; this takes about %.1f GB beside the models, and %.1f GB are free.",
        found.micro,
        ", parts of the model twice to save memory" if found.twice else "",
        found.bytes / GB,
        free / GB,
    )
    return found.micro, found.twice
