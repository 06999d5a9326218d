"""Choose how much of a training step is computed at once, according to the available memory."""

import logging
import math
from dataclasses import dataclass

from ...perfusion_core.training.lesson import Lesson
from ...perfusion_core.training.loop import trial_forward
from ...perfusion_core.training.settings import Settings
from ...perfusion_core.training.state import TrainingState
from .. import host

log = logging.getLogger("perfusion")

GB = 2**30
AUTO = "auto"
CARDS = {"6 GB": 6 * GB, "8 GB": 8 * GB, "12 GB": 12 * GB}
"""Preset -> memory, in bytes, of the graphics card that training must fit on."""
ELSEWHERE = GB // 2
"""Bytes of a card's memory that are used by others: the driver and the display."""
ROOM, BLOCKS = 1.1, 2
"""A backward pass needs ROOM times the bytes saved for it, plus BLOCKS times those of the largest block as working memory."""


@dataclass(frozen=True)
class Portion:
    """Number of pictures computed at once, whether parts of the model are computed twice, and the bytes that this needs."""

    micro: int
    twice: bool
    bytes: int


def portion(need: host.MemoryNeed, free: int, at_once: int) -> Portion:
    """Return the largest number of pictures, among `at_once` and its successive halves, that fits into `free` bytes.

    Parts are computed twice only if fewer than two pictures would fit otherwise. If nothing fits, the result is one picture with
    parts computed twice.
    """
    halves = [at_once]
    while halves[-1] > 1:
        halves.append(halves[-1] // 2)

    def takes(micro: int, twice: bool) -> int:
        return round(ROOM * need.bytes(micro, twice)) + BLOCKS * need.largest(micro)

    tried = [Portion(micro, twice, takes(micro, twice)) for twice in (False, True) for micro in halves]
    wanted = [each for each in tried if each.twice or each.micro >= min(2, at_once)]
    return next((each for each in wanted if each.bytes <= free), tried[-1])


def longest(lesson: Lesson, batch: int) -> list[str]:
    """Return the longest prompts that a step of a lesson may encode: two templates at most, and captions for the others."""
    captions = [caption for bucket in lesson.buckets for caption in bucket.captions]
    return sorted((*lesson.templates, *captions), key=len)[-min(batch, 2 + len(captions)) :]


def fit(model: host.TrainableModel, state: TrainingState, lesson: Lesson, settings: Settings, memory: str) -> tuple[int, bool]:
    """Return how many pictures a session computes at once, and whether parts of the model are computed twice; both are logged.

    `memory` is AUTO or a key of CARDS.
    """
    limit = CARDS[memory] - ELSEWHERE - model.bytes() if memory in CARDS else math.inf
    need = model.need(state.word, longest(lesson, settings.batch), lambda: trial_forward(model, state, lesson, settings))
    free = min(limit, host.free_memory(model.device))
    found = portion(need, free, settings.micro)
    # After a preview or a judgement, no more than this needs to be free again.
    model.room = max(0, min(limit, found.bytes))
    log.info(
        "Training processes %d picture%s at a time%s; this takes about %.1f GB in addition to the models, and %.1f GB is free.",
        found.micro,
        "s" if found.micro > 1 else "",
        ", recomputing parts of the model to save memory" if found.twice else "",
        found.bytes / GB,
        free / GB,
    )
    return found.micro, found.twice
