"""The files of a training in `.work`: its checkpoint, its best concept so far, and both of the training that finished last."""

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ...perfusion_core import PerfusionError
from ...perfusion_core.concept import Concept
from ...perfusion_core.judgement import Judgement
from ...perfusion_core.safe_files import read, require, write
from ...perfusion_core.training.settings import Settings
from ...perfusion_core.training.state import TrainingState
from .. import host
from ..folders import work_folder

log = logging.getLogger("perfusion")

FINISHED = "finished"
"""Sub-folder for the training that finished last; its files are kept because ComfyUI may die before the concept is saved."""
MAX_CHECKPOINT = 256 * 2**20
METADATA = {"format": "perfusion-training", "version": "1"}
_ended_here: set[Path] = set()
"""Checkpoints of the trainings that this process finished."""


def fingerprint(
    model: ModelPatcher, clip: CLIP, vae: VAE, settings: Settings, superclass: str, keep: str, tensors: Sequence[Tensor]
) -> str:
    """Return a digest of everything that a training depends on, so that a checkpoint is used for the same training only.

    How many pictures are computed at once is left out: it affects memory alone, and a training that ran out of memory can be
    resumed with fewer. `tensors` are pictures, masks and covariance.
    """
    told = replace(settings, micro=1), superclass, keep, host.identity_of(clip), host.identity_of_weights(model, vae)
    digest = hashlib.sha256(str(told).encode())
    # The embedding of that name may have been replaced by one with other vectors.
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
        self.unsaved: Concept | None = None

    def resume(self, fresh: TrainingState) -> TrainingState:
        """Return the state in the checkpoint, or the fresh one if there is no usable checkpoint with tensors of the same shapes."""
        self._bring_back()
        if not self.path.exists():
            return fresh
        try:
            named, told = read(self.path, MAX_CHECKPOINT)
            require(all(told.get(name) == value for name, value in METADATA.items()), self.path, "it is of another version")
            state = TrainingState.from_tensors(named, fresh.target_input.device)
        except PerfusionError as error:
            log.warning("%s Training starts anew.", error)
            return fresh
        shapes = [{k: v.shape for k, v in each.tensors().items() if k != "losses"} for each in (state, fresh)]
        if shapes[0] != shapes[1]:
            return fresh
        log.info("Training goes on from step %d.", state.step)
        return state

    def keep(self, state: TrainingState) -> None:
        """Write the checkpoint atomically, replacing the previous one; if that fails, log it and keep the previous one."""
        with unless_unwritable("this checkpoint"):
            write(self.path, state.tensors(), METADATA)

    def keep_best(self, judged: Concept) -> None:
        """Keep a judged concept if it is the first or beats the best one: in a file, or in memory if none can be written."""
        best = self.best()
        if best is None or judgement_of(judged).beats(judgement_of(best)):
            self.unsaved = judged
            with unless_unwritable("a file of the best concept so far"):
                judged.save(self.best_path, torch.float32)
                self.unsaved = None

    def best(self) -> Concept | None:
        """Return the best concept so far; None if no concept was judged."""
        if self.unsaved or not self.best_path.exists():
            return self.unsaved
        return Concept.load(self.best_path)

    def finish(self) -> None:
        """Move the files to FINISHED, in place of those of the training that finished before.

        Called once everything is done, the final picture included.
        """
        _ended_here.add(self.path)
        folder = self._finished()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        _move((self.best_path, self.path), folder)

    def _bring_back(self) -> None:
        """Restore the files of this training if it was the last to finish, in another process: it then resumes at its end.

        Within the process that finished it, queueing the training again trains it again. The presence of the checkpoint decides,
        since the best concept is useless without it.
        """
        folder = self._finished()
        if self.path not in _ended_here and (folder / self.path.name).exists():
            _move([folder / path.name for path in (self.best_path, self.path)], self.path.parent)

    def _finished(self) -> Path:
        return self.path.parent / FINISHED


@contextlib.contextmanager
def unless_unwritable(what: str) -> Iterator[None]:
    """Log a file that cannot be written within the context, and let the training go on without `what`."""
    try:
        yield
    except PerfusionError as error:
        log.warning("%s Training goes on without %s.", error, what)


def judgement_of(concept: Concept) -> Judgement:
    """Return the judgement that training recorded in a concept."""
    return Judgement(float(concept.training["held_out_loss"]), float(concept.training["followed"]))


def _move(files: Sequence[Path], folder: Path) -> None:
    """Move the files that exist to a folder, in this order."""
    for file in files:
        if file.exists():
            file.replace(folder / file.name)
