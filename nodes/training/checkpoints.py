"""The files of a training in `.work`: its checkpoint, its best concept so far, and both of the training that finished last."""

import contextlib
import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ...perfusion_core import PerfusionError
from ...perfusion_core.concept import Concept
from ...perfusion_core.judgement import Judgement, PictureJudgement
from ...perfusion_core.safe_files import read, require, write
from ...perfusion_core.training.settings import Settings
from ...perfusion_core.training.state import TrainingState
from .. import host
from ..folders import work_folder
from . import finished

log = logging.getLogger("perfusion")

MAX_CHECKPOINT = 256 * 2**20
METADATA = {"format": "perfusion-training", "version": "1"}
_ended_here: set[Path] = set()
"""Checkpoints of the trainings that this process finished."""


def fingerprint(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    settings: Settings,
    superclass: str,
    keep: str,
    tensors: Sequence[Tensor],
    options: str = "",
) -> str:
    """Return a digest of everything that a training depends on, so that a checkpoint is used for the same training only.

    How many pictures are computed at once is left out: it affects only memory, and a training that ran out of memory can be resumed
    with fewer. `tensors` are pictures, masks and covariance, and `options` describes the further options that were chosen.
    """
    told = replace(settings, micro=1), superclass, keep, host.identity_of(clip), host.identity_of_weights(model, vae)
    digest = hashlib.sha256((str(told) + options).encode())
    # The embedding may have been replaced by another one of the same name.
    initial = host.embed(clip, settings.initial_word or superclass)
    for tensor in (*tensors, *initial.values()):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


class Checkpoints:
    """The files of one training, identified by its fingerprint."""

    def __init__(self, digest: str) -> None:
        """Set the paths of the files; nothing is read or written."""
        self.path = work_folder() / f"training-{digest}.safetensors"
        self.best_path = work_folder() / f"best-{digest}.safetensors"
        self.best: Concept | None = None
        """The best concept so far; None if no concept was judged."""

    def resume(self, fresh: TrainingState) -> TrainingState:
        """Return the state in the checkpoint, or the fresh one if there is no usable checkpoint with tensors of the same shapes.

        This also restores the best concept so far.
        """
        folder = next((each for each in self._folders() if (each / self.path.name).exists()), None)
        if folder is None:
            return fresh
        try:
            # In this order: while the checkpoint is there, so is the best concept, if there is one at all.
            best = Concept.load(folder / self.best_path.name) if (folder / self.best_path.name).exists() else None
            named, told = read(folder / self.path.name, MAX_CHECKPOINT)
            require(
                all(told.get(name) == value for name, value in METADATA.items()),
                self.path,
                "it was made by another version of this pack",
            )
            state = TrainingState.from_tensors(named, fresh.target_input.device)
        except PerfusionError as error:
            log.warning("%s Training starts over.", error)
            return fresh
        shapes = [{k: v.shape for k, v in each.tensors().items() if k != "losses"} for each in (state, fresh)]
        if shapes[0] != shapes[1]:
            return fresh
        self.best = best
        log.info("Training continues from step %d.", state.step)
        return state

    def keep(self, state: TrainingState, stopped: bool = False) -> None:
        """Write the checkpoint atomically, replacing the previous one; if that fails, log it and keep the previous one.

        `stopped` says that the user stopped the training here.
        """
        with unless_unwritable("this checkpoint", stopped):
            write(self.path, state.tensors(), METADATA)

    def keep_best(self, judged: Concept) -> None:
        """Keep a judged concept if it is the first or beats the best one: in memory, and in a file if one can be written."""
        if self.best is None or judgement_of(judged).beats(judgement_of(self.best)):
            self.best = judged
            with unless_unwritable("a file of the best concept so far"):
                judged.save(self.best_path, torch.float32)

    def finish(self, state: TrainingState) -> None:
        """Keep the files as those of the training that finished last, because ComfyUI may die before the concept is saved.

        Called once everything is done, the final picture included. They are written again instead of moved, because another process
        may be finishing the same training, with the same files. If this fails, the training still counts as done.
        """
        _ended_here.add(self.path)

        def write_files(folder: Path) -> None:
            if self.best is not None:
                self.best.save(folder / self.best_path.name, torch.float32)
            write(folder / self.path.name, state.tensors(), METADATA)

        try:
            finished.keep(self.path.parent, (self.path.name, self.best_path.name), write_files)
        except (OSError, PerfusionError) as error:
            log.warning("Training has finished, but its files could not be kept: %s", error)

    def _folders(self) -> Iterator[Path]:
        """Yield the folders in which this training's files may be.

        If another process finished it, it resumes at its end. Within the process that finished it, queueing the training again
        trains it again, unless its files could not be kept with those that are finished.
        """
        if self.path not in _ended_here:
            yield from finished.kept(self.path.parent)
        yield self.path.parent


@contextlib.contextmanager
def unless_unwritable(what: str, stopped: bool = False) -> Iterator[None]:
    """Log that `what` cannot be written within the context, and let the training go on without it, or end if it was stopped."""
    try:
        yield
    except PerfusionError as error:
        log.warning("%s Training %s.", error, "stopped" if stopped else f"continues without {what}")


def judgement_of(concept: Concept) -> Judgement | PictureJudgement:
    """Return the judgement that training recorded in a concept; a measure that was not a number counts as the worst."""

    def told(name: str, worst: float) -> float:
        measured = float(concept.training.get(name, worst))
        return worst if math.isnan(measured) else measured

    if "likeness" in concept.training:
        return PictureJudgement(told("likeness", -math.inf), told("prompted", -math.inf))
    return Judgement(told("held_out_loss", math.inf), told("followed", -math.inf))
