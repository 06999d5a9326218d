"""A training as an iterator of events: its steps, and the actions due after each."""

import enum
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ...perfusion_core import PerfusionError
from ...perfusion_core.training.lesson import Lesson
from ...perfusion_core.training.loop import train
from ...perfusion_core.training.settings import Settings
from ...perfusion_core.training.state import TrainingState
from .. import host

log = logging.getLogger("perfusion")

CHECKPOINT_EVERY = 25
"""Steps between checkpoints, and between judgements if the best concept is kept."""


class Event(enum.Enum):
    """An action to take on the current state. Those that are due after the same step come in this order."""

    CHECKPOINT = enum.auto()
    JUDGEMENT = enum.auto()
    SAVING = enum.auto()
    PREVIEW = enum.auto()
    STEP = enum.auto()


@dataclass(frozen=True)
class Schedule:
    """When each event is due.

    Attributes:
        steps: number of steps of the whole training.
        preview_every, save_every: steps between pictures that are shown and between concepts that are saved; 0 for none.
        judged: whether concepts are judged, so that the best one is kept.
    """

    steps: int
    preview_every: int
    save_every: int
    judged: bool

    def due(self, step: int) -> list[Event]:
        """Return the events due after a step; no preview after the last, as the final picture shows the training's result."""
        last = step == self.steps
        checking, saving, showing = (n > 0 and step % n == 0 for n in (CHECKPOINT_EVERY, self.save_every, self.preview_every))
        wanted = {
            Event.CHECKPOINT: checking or last,
            Event.JUDGEMENT: self.judged and (checking or last),
            Event.SAVING: saving,
            Event.PREVIEW: showing and not last,
            Event.STEP: True,
        }
        return [event for event, due in wanted.items() if due]

    def due_on_resuming(self, step: int) -> list[Event]:
        """Return the events due before the first step of a resumed training: it may have ended before it was judged or saved."""
        if not step:
            return []
        showing = [Event.PREVIEW] if self.preview_every else []
        return showing + [event for event in self.due(step) if event in (Event.JUDGEMENT, Event.SAVING)]


def events(
    model: host.TrainableModel,
    state: TrainingState,
    lesson: Lesson,
    settings: Settings,
    schedule: Schedule,
) -> Iterator[Event]:
    """Train to the end, yielding the events due after each step once the state is updated; arguments as for `loop.train`."""
    yield from schedule.due_on_resuming(state.step)
    for _ in steps(model, state, lesson, settings):
        yield from schedule.due(state.step)


def steps(model: host.TrainableModel, state: TrainingState, lesson: Lesson, settings: Settings) -> Iterator[float]:
    """Yield the losses of `loop.train`; if memory runs out nevertheless, continue from that step with a smaller footprint.

    That is first without other models on the device, then with half the pictures at a time, and in the end with parts of the model
    computed twice. The result is the same.

    Raises:
        PerfusionError: if memory runs out with one picture at a time and parts computed twice.
    """
    alone = False
    while state.step < settings.steps:
        try:
            yield from train(model, state, lesson, settings)
            return
        except RuntimeError as error:
            if not host.memory_ran_out(error):
                raise
        # Outside the handler: within it the exception still references what was computed when memory ran out.
        host.free_unused()
        if not alone and model.unload_others():
            less = "without other models on the device"
        elif settings.micro > 1:
            settings = replace(settings, micro=settings.micro // 2)
            less = f"with {settings.micro} picture{'s' if settings.micro > 1 else ''} at a time"
        elif not model.twice:
            model.twice = True
            less = "with parts of the model recomputed"
        else:
            raise PerfusionError(
                "There is not enough memory to train with even one picture at a time; choose a smaller size, or close other "
                "programs that use the device."
            )
        alone = True
        log.warning("Memory ran out at step %d; continuing %s.", state.step + 1, less)
