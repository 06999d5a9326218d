"""The course of a training in its node: what it goes on from, and what it keeps, saves and shows on its way."""

import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ...perfusion_core import PerfusionError
from ...perfusion_core.concept import Concept
from ...perfusion_core.covariance import Covariance, probe
from ...perfusion_core.judgement import Judgement
from ...perfusion_core.safe_files import read, require, write
from ...perfusion_core.training.loop import Lesson, Settings, held_out_loss, start, teach
from .. import host
from ..io_types import home
from ..prompt_adherence import Following
from . import finished, pictures
from .memory import fit
from .progress import Progress

log = logging.getLogger("perfusion")

CHECKPOINT_EVERY = 25
LOSSES = 25
"""Steps over whose losses a concept tells the mean, or all of them if they are fewer."""
MAX_CHECKPOINT = 256 * 2**20
CHECKPOINT = {"format": "perfusion-training", "version": "1"}


def fingerprint(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    settings: Settings,
    superclass: str,
    keep: str,
    images: Tensor,
    masks: Tensor,
    covariance: Covariance,
) -> str:
    """A digest of all that a training depends on: a checkpoint serves the same training alone.

    How many pictures are computed at once changes nothing but the memory: who ran out of it goes on with fewer.
    """
    told = replace(settings, micro=1), superclass, keep, host.identity_of(clip), host.identity_of_weights(model, vae)
    digest = hashlib.sha256(str(told).encode())
    # An embedding of the same name may hold other vectors by now.
    initial = host.embed(clip, settings.initial_word or superclass)
    for tensor in (images, masks, covariance.matrix, *initial.values()):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def resume(path: Path, fresh: Lesson) -> Lesson:
    """The lesson of a checkpoint, or the fresh one where there is none that fits."""
    if not path.exists():
        return fresh
    try:
        named, told = read(path, MAX_CHECKPOINT)
        require(all(told.get(name) == value for name, value in CHECKPOINT.items()), path, "it is of another version")
        lesson = Lesson.from_tensors({k: v.to(fresh.target_input.device) for k, v in named.items()})
    except PerfusionError as error:
        log.warning("%s Training starts anew.", error)
        return fresh
    shapes = [{k: v.shape for k, v in each.tensors().items() if k != "losses"} for each in (lesson, fresh)]
    if shapes[0] != shapes[1]:
        return fresh
    log.info("Training goes on from step %d.", lesson.step)
    return lesson


def concept_of(lesson: Lesson, inverse: Tensor, trigger: str, superclass: str, family: str, settings: Settings) -> Concept:
    """What has been learned so far as a concept, on the CPU."""

    def own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.detach().cpu().clone() for k, v in tensors.items()}

    target_input = lesson.target_input.cpu().clone()
    told = {k: v for k, v in asdict(settings).items() if k not in ("micro", "ema")}
    last = lesson.losses[-LOSSES:]
    loss = {"loss": round(sum(last) / len(last), 6)} if last else {}
    return Concept(
        trigger=trigger,
        superclass=superclass,
        family=family,
        word=own(lesson.word),
        target_input=target_input,
        probe=probe(inverse, target_input),
        superclass_encoding=lesson.superclass_encoding.cpu().clone(),
        values=own(lesson.values),
        keys=own(lesson.keys),
        # The paper's ratio of inference to training: 0.6 to 0.75, and 0.15 to 0.1.
        bias=round(0.8 * settings.bias, 6),
        temperature=round(1.5 * settings.temperature, 6),
        training=told | {"steps": lesson.step} | loss,
    )


def portrait(model: ModelPatcher, clip: CLIP, vae: VAE, word: str, size: int, seed: int) -> Tensor:
    """A picture [size, size, 3] of what a word stands for, in a place that shows whether prompts are still followed."""
    # Little guidance: much of it overdraws what a concept has not learned well yet.
    return host.draw(model, clip, vae, f"a photo of a {word} on the grass", size, seed, cfg=3.0)[0]


def steps_folder(trigger: str, digest: str) -> Path:
    """Where concepts are saved that a training makes on its way: the same training comes to the same folder again."""
    name = re.sub(r"[^\w-]+", "-", trigger).strip("-") or "concept"
    return home() / "steps" / f"{name}-{digest[:8]}"


class Best:
    """The best concept of a training so far, told by `following.Judgement`; kept in a file, as the training itself is."""

    def __init__(self, path: Path, following: Callable[[], Following], mode: str) -> None:
        """`following` is asked for when it is first needed."""
        self.path, self.mode = path, mode
        self.following = cache(following)

    def judge(self, concept: Concept, loss: float) -> Concept:
        """The concept with what is thought of it, which is kept if there was no better one."""
        (score,) = self.following().scores(concept, [concept.bias], self.mode)
        judged = replace(concept, training={**concept.training, "held_out_loss": loss, "followed": score})
        if not self.path.exists() or judgement_of(judged).beats(judgement_of(self.concept())):
            judged.save(self.path, torch.float32)
        return judged

    def concept(self) -> Concept:
        """The best one."""
        return Concept.load(self.path)


def judgement_of(concept: Concept) -> Judgement:
    """What was thought of a concept while it was taught."""
    return Judgement(float(concept.training["held_out_loss"]), float(concept.training["followed"]))


@dataclass(frozen=True)
class Course:
    """How a training runs in its node.

    Attributes:
        superclass, settings: as for `training.start`.
        path: where its checkpoint is; another run with this path goes on from there.
        so_far: the concept of a lesson as it stands.
        show: a picture of a concept, [h, w, 3].
        plain: such a picture of the superclass, which is the concept before its first step; None without pictures.
        preview_every, save_every: steps between pictures that are shown and concepts that are saved, 0 for none; a stopped
            training saves its concept in any case.
        folder: where concepts are saved.
        best: what keeps the best of every CHECKPOINT_EVERY steps, if that is wanted.
        memory: what it may take, as for `memory.fit`.
    """

    superclass: str
    settings: Settings
    path: Path
    so_far: Callable[[Lesson], Concept]
    show: Callable[[Concept], Tensor]
    plain: Tensor | None
    preview_every: int
    save_every: int
    folder: Path
    best: Best | None
    memory: str

    def run(self, student: host.Student, latents: Tensor, weights: Tensor, inverse: Tensor) -> tuple[Lesson, Progress]:
        """Teach to the end, within `host.learning`; what is learned, and what was shown of it. Arguments as for `teach`."""
        # Copies: tensors of the node's inference mode can take no part in a backward pass.
        latents, weights = (tensor.to(student.device, torch.float32, copy=True) for tensor in (latents, weights))
        given = latents, weights, inverse.clone()
        finished.bring_back(self._files())
        lesson = resume(self.path, start(student, self.superclass, self.settings))
        micro, student.twice = fit(student, lesson, given, self.settings, self.memory)
        settings = replace(self.settings, micro=micro)
        progress = Progress(lesson.step, self.settings.steps)
        if self.plain is not None:
            progress.portrait(0, self.plain)
            if lesson.step:
                progress.portrait(lesson.step, self.show(self.so_far(lesson)))

        def judged() -> Concept:
            concept = self.so_far(lesson)
            if self.best and (lesson.step % CHECKPOINT_EVERY == 0 or lesson.step == self.settings.steps):
                return self.best.judge(concept, held_out_loss(student, lesson, *given, settings))
            return concept

        try:
            if lesson.step:
                judged()  # it may have been stopped before that
            self._teach(student, lesson, given, settings, lambda _: self._after_step(lesson, progress, judged))
        except host.Interrupted:
            # The host raises it from within any of its layers; the lesson then stands as after its last whole step.
            self._stopped(lesson, progress)
            raise
        return lesson, progress

    def _teach(
        self,
        student: host.Student,
        lesson: Lesson,
        given: tuple[Tensor, Tensor, Tensor],
        settings: Settings,
        after_step: Callable[[Lesson], None],
    ) -> None:
        """Teach; where memory runs out all the same, go on from that step and take less, which gives the same."""
        while lesson.step < settings.steps:
            try:
                teach(student, lesson, *given, settings, after_step)
            except RuntimeError as error:
                if not host.memory_ran_out(error):
                    raise
                if settings.micro == 1 and student.twice:
                    raise PerfusionError(
                        "There is not enough memory to train with one picture at once; choose a smaller size, or close what else "
                        "uses the device."
                    ) from error
                if settings.micro > 1:
                    settings = replace(settings, micro=settings.micro // 2)
                    less = f"{settings.micro} pictures at once"
                else:
                    student.twice = True
                    less = "parts of the model computed twice"
                log.warning("Memory ran out at step %d; going on with %s.", lesson.step + 1, less)
            # Not within the handler: there the error still holds what was computed when memory ran out.
            host.free_unused()

    def _after_step(self, lesson: Lesson, progress: Progress, judged: Callable[[], Concept]) -> None:
        step, last = lesson.step, lesson.step == self.settings.steps
        saving, showing, checking = (
            every > 0 and step % every == 0 for every in (self.save_every, self.preview_every, CHECKPOINT_EVERY)
        )
        showing = showing and not last  # that picture is drawn of what the training gives
        if checking or last:
            self._keep(lesson)
        # Most steps need no concept, and to make one copies all of it from the device.
        if saving or showing or checking or last:
            concept = judged()
            if saving:
                self._save(concept, step, progress)
            if showing:
                progress.portrait(step, self.show(concept))
        progress.update(lesson.losses)

    def finish(self) -> None:
        """All of it came to its end, pictures included."""
        finished.set_aside(self._files())

    def _files(self) -> list[Path]:
        return [*([self.best.path] if self.best else []), self.path]

    def _keep(self, lesson: Lesson) -> None:
        write(self.path, lesson.tensors(), CHECKPOINT)

    def _save(self, concept: Concept, step: int, progress: Progress) -> Path:
        """Save what there is after a step, with the picture that was shown last."""
        shown = [picture for at, picture in progress.portraits if at]
        if shown:
            concept = replace(concept, preview=pictures.preview_bytes(shown[-1]))
        path = self.folder / f"{step:05}.safetensors"
        concept.save(path, torch.float32)
        return path

    def _stopped(self, lesson: Lesson, progress: Progress) -> None:
        self._keep(lesson)
        told = f"Training stopped at step {lesson.step} of {self.settings.steps}; queue the same graph again to go on."
        if lesson.step:
            saved = self._save(self.so_far(lesson), lesson.step, progress)
            told += f" The concept so far is {saved.relative_to(home()).as_posix()} in Load Concept."
        log.info(told)
