"""A training as an iterator of events: its steps, and what is due after each."""

import enum
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from ...perfusion_core import PerfusionError
from ...perfusion_core.training.loop import train
from ...perfusion_core.training.settings import Settings
from ...perfusion_core.training.state import TrainingState
from .. import host

log = logging.getLogger("perfusion")

CHECKPOINT_EVERY = 25
"""Steps between checkpoints, and between judgements where the best concept is to be kept."""


class Event(enum.Enum):
    """What is to be done about the state as it stands; in this order, where several are due after one step."""

    CHECKPOINT = enum.auto()
    JUDGEMENT = enum.auto()
    SAVING = enum.auto()
    PREVIEW = enum.auto()
    STEP = enum.auto()


@dataclass(frozen=True)
class Schedule:
    """What is due when.

    Attributes:
        steps: of the whole training.
        preview_every, save_every: steps between pictures that are shown and concepts that are saved; 0 for none.
        judged: whether concepts are judged, so that the best is kept.
    """

    steps: int
    preview_every: int
    save_every: int
    judged: bool

    def due(self, step: int) -> list[Event]:
        """After a step. The last picture is drawn of what the training gives, and not here."""
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
        """Before the first step of a training that goes on: it may have been stopped before it was judged."""
        again = {Event.JUDGEMENT} & set(self.due(step))
        return [*([Event.PREVIEW] if self.preview_every else []), *again] if step else []


def events(
    model: host.TrainableModel,
    state: TrainingState,
    given: tuple[Tensor, Tensor, Tensor],
    settings: Settings,
    schedule: Schedule,
) -> Iterator[Event]:
    """Train to the end; what is due after each step, once the state stands after it. Arguments as for `loop.train`."""
    yield from schedule.due_on_resuming(state.step)
    for _ in steps(model, state, given, settings):
        yield from schedule.due(state.step)


def steps(
    model: host.TrainableModel, state: TrainingState, given: tuple[Tensor, Tensor, Tensor], settings: Settings
) -> Iterator[float]:
    """`loop.train`; where memory runs out all the same, it goes on from that step and takes less, which gives the same."""
    while state.step < settings.steps:
        try:
            yield from train(model, state, *given, settings)
        except RuntimeError as error:
            if not host.memory_ran_out(error):
                raise
            if settings.micro == 1 and model.twice:
                raise PerfusionError(
                    "There is not enough memory to train with one picture at once; choose a smaller size, or close what else uses "
                    "the device."
                ) from error
            if settings.micro > 1:
                settings = replace(settings, micro=settings.micro // 2)
                less = f"{settings.micro} pictures at once"
            else:
                model.twice = True
                less = "parts of the model computed twice"
            log.warning("Memory ran out at step %d; going on with %s.", state.step + 1, less)
        # Not within the handler: there the error still holds what was computed when memory ran out.
        host.free_unused()
