"""One run of Train Concept: consumes the events of the training, and shows, checkpoints and saves the concept along the way."""

import contextlib
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ...perfusion_core.concept import Concept
from ...perfusion_core.training.lesson import Lesson
from ...perfusion_core.training.loop import held_out_loss, initial_state
from ...perfusion_core.training.settings import Settings
from ...perfusion_core.training.state import TrainingState
from .. import host
from ..charts import preview_bytes
from ..folders import home
from ..prompt_adherence import PromptAdherence
from .checkpoints import Checkpoints, unless_unwritable
from .memory import fit
from .picture_judge import PictureJudge
from .previews import Previews
from .progress import Progress
from .schedule import Event, Schedule, events

log = logging.getLogger("perfusion")


@dataclass
class TrainingSession:
    """One run of a training in the node.

    Attributes:
        model, clip, vae: the host's objects; they are not modified.
        superclass, trigger, size, settings: as set in the node.
        family: base family of the model.
        lesson: the pictures, their prompts and C⁻¹.
        digest: fingerprint of the training.
        previews: how previews are generated.
        judge: chooses the best step by pictures; None if it is chosen by the loss.
        plain: previews of the superclass, i.e. of the concept before its first step; None without previews.
        schedule: when each event is due.
        memory: memory preset, as for `memory.fit`.
        state: state of the training; set by `run`.
        progress: display of the training; set by `run`.
    """

    model: ModelPatcher
    clip: CLIP
    vae: VAE
    superclass: str
    trigger: str
    size: int
    settings: Settings
    family: str
    lesson: Lesson
    digest: str
    previews: Previews
    judge: PictureJudge | None
    plain: Tensor | None
    schedule: Schedule
    memory: str
    state: TrainingState = field(init=False)
    progress: Progress = field(init=False)

    def run(self, model: host.TrainableModel) -> None:
        """Train to the end; must be called within `host.gradients_enabled`."""
        # Models that the host keeps loaded in case they are used again give way to the training.
        model.unload_others()
        lesson = self.lesson.to(model.device)
        self.state = self.checkpoints.resume(initial_state(model, self.superclass, self.settings))
        micro, model.twice = fit(model, self.state, lesson, self.settings, self.memory)
        settings = replace(self.settings, micro=micro)
        self.progress = Progress(self.state.step, self.settings.steps)
        if self.plain is not None:
            self.progress.portrait(0, self.plain)
        judged: dict[int, Concept] = {}  # by step
        try:
            for event in events(model, self.state, lesson, settings, self.schedule):
                match event:
                    case Event.STEP:
                        self.progress.update(self.state.losses)
                    case Event.CHECKPOINT:
                        self.checkpoints.keep(self.state)
                    case Event.JUDGEMENT:
                        concept = self._judged(model, lesson, settings)
                        if concept:
                            self.checkpoints.keep_best(concept)
                            judged = {self.state.step: concept}
                    case Event.SAVING:
                        with unless_unwritable("it"):
                            self._save(judged.get(self.state.step) or self.so_far())
                    case Event.PREVIEW:
                        self._show(model, judged.get(self.state.step) or self.so_far())
        except host.Interrupted:
            # The host may raise it from within any of its layers; the state is then that of the last completed step.
            self._stopped()
            raise

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The files of this training."""
        return Checkpoints(self.digest)

    @cached_property
    def adherence(self) -> PromptAdherence:
        """The measure of prompt adherence; created on first use, since that runs the model on the plain word."""
        return PromptAdherence(self.model, self.clip, self.superclass, self.size, self.settings.seed)

    def so_far(self) -> Concept:
        """Return the concept in its current state."""
        concept = self.state.concept(self.lesson.inverse, self.trigger, self.superclass, self.family, self.settings)
        return replace(concept, training={**concept.training, "clip_layer": host.clip_layer(self.clip)})

    def result(self) -> Concept:
        """Return the result of the training: the best concept if concepts are judged, otherwise the current one."""
        if not self.schedule.judged:
            return self.so_far()
        best = self.checkpoints.best
        if best is None:
            log.warning("There was not enough memory to judge any concept, so the best one is unknown; the last one is kept.")
            return self.so_far()
        # A training resumes whatever its trigger, so the best concept may have been judged under another one.
        return replace(best, trigger=self.trigger)

    def pictures(self, concept: Concept) -> Tensor:
        """Draw the previews [K, size, size, 3] of a concept."""
        taught = host.model_with_edit(self.model, (concept,), self.settings.mode), host.clip_with_words(self.clip, (concept,))
        return self.previews.draw(*taught, self.vae, self.trigger, self.size, self.settings.seed)

    def _judged(self, model: host.TrainableModel, lesson: Lesson, settings: Settings) -> Concept | None:
        """Return the concept in its current state, with its judgement among its training metadata; None if memory runs out."""
        concept = self.so_far()
        with self._spared("the judgement"):
            if self.judge is not None:
                model.release_weights()
                found = self.judge.judgement(concept)
                told = {"likeness": round(found.likeness, 4), "prompted": round(found.prompted, 4)}
            else:
                loss = held_out_loss(model, self.state, lesson, settings)
                model.release_weights()
                (score,) = self.adherence.scores(concept, [concept.bias], self.settings.mode)
                told = {"held_out_loss": loss, "followed": score}
            if not all(math.isfinite(each) for each in told.values()):
                log.warning(
                    "The judgement of step %d is not a number, so this step counts as the worst; train in a higher precision, or "
                    "with lower learning rates.",
                    self.state.step,
                )
            return replace(concept, training={**concept.training, **told})

    def _show(self, model: host.TrainableModel, concept: Concept) -> None:
        """Show the previews of the concept."""
        model.release_weights()
        with self._spared("the preview"):
            self.progress.portrait(self.state.step, self.pictures(concept))

    @contextlib.contextmanager
    def _spared(self, what: str) -> Iterator[None]:
        """If memory runs out within this context, log that `what` is skipped, and let the training go on."""
        try:
            yield
        except RuntimeError as error:
            if not host.memory_ran_out(error):
                raise
            log.warning("There was not enough memory for %s at step %d; training continues without it.", what, self.state.step)
            host.free_unused()

    def _save(self, concept: Concept) -> str:
        """Save the concept of the current step with the picture shown last; return its name as Load Concept lists it."""
        shown = [picture for at, picture in self.progress.portraits if at]
        if shown:
            concept = replace(concept, preview=preview_bytes(shown[-1][0]))
        # The digest lets a resumed training save to the same folder.
        name = re.sub(r"[^\w-]+", "-", self.trigger).strip("-") or "concept"
        listed = Path("steps") / f"{name}-{self.digest[:8]}" / f"{self.state.step:05}.safetensors"
        concept.save(home() / listed, torch.float32)
        return listed.as_posix()

    def _stopped(self) -> None:
        """Keep what there is when the user stops the training; files that cannot be written must not hide that it was stopped."""
        self.checkpoints.keep(self.state, stopped=True)
        told = f"Training stopped at step {self.state.step} of {self.settings.steps}; queue the same graph again to continue."
        if self.state.step:
            with unless_unwritable("the concept so far", stopped=True):
                told += f" The concept so far is listed in Load Concept as {self._save(self.so_far())}."
        log.info("%s", told)
