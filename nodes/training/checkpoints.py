"""The files of a training in `.work`: its checkpoint, the best concept so far, and what remains of the training that ended last."""

import hashlib
import logging
import shutil
from collections.abc import Sequence
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
"""Sub-folder for the training that ended last: its files stay, for ComfyUI may die before the concept is saved."""
MAX_CHECKPOINT = 256 * 2**20
METADATA = {"format": "perfusion-training", "version": "1"}
_ended_here: set[Path] = set()
"""Checkpoints of trainings that this process ended."""


def fingerprint(
    model: ModelPatcher, clip: CLIP, vae: VAE, settings: Settings, superclass: str, keep: str, tensors: Sequence[Tensor]
) -> str:
    """A digest of all that a training depends on: a checkpoint serves the same training alone.

    How many pictures are computed at once changes nothing but the memory: who ran out of it goes on with fewer. `tensors`:
    pictures, masks and covariance.
    """
    told = replace(settings, micro=1), superclass, keep, host.identity_of(clip), host.identity_of_weights(model, vae)
    digest = hashlib.sha256(str(told).encode())
    # An embedding of the same name may hold other vectors by now.
    initial = host.embed(clip, settings.initial_word or superclass)
    for tensor in (*tensors, *initial.values()):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


class Checkpoints:
    """The files of one training, known by its fingerprint."""

    def __init__(self, digest: str) -> None:
        """Nothing is read or written yet."""
        self.path = work_folder() / f"training-{digest}.safetensors"
        self.best_path = work_folder() / f"best-{digest}.safetensors"

    def resume(self, fresh: TrainingState) -> TrainingState:
        """The state that the checkpoint holds, or the fresh one where there is none that fits."""
        self._bring_back()
        if not self.path.exists():
            return fresh
        try:
            named, told = read(self.path, MAX_CHECKPOINT)
            require(all(told.get(name) == value for name, value in METADATA.items()), self.path, "it is of another version")
            state = TrainingState.from_tensors({k: v.to(fresh.target_input.device) for k, v in named.items()})
        except PerfusionError as error:
            log.warning("%s Training starts anew.", error)
            return fresh
        shapes = [{k: v.shape for k, v in each.tensors().items() if k != "losses"} for each in (state, fresh)]
        if shapes[0] != shapes[1]:
            return fresh
        log.info("Training goes on from step %d.", state.step)
        return state

    def keep(self, state: TrainingState) -> None:
        """Write the checkpoint anew, whole or not at all."""
        write(self.path, state.tensors(), METADATA)

    def keep_best(self, judged: Concept) -> None:
        """Keep a concept that was judged, if there was no better one."""
        if not self.best_path.exists() or judgement_of(judged).beats(judgement_of(self.best())):
            judged.save(self.best_path, torch.float32)

    def best(self) -> Concept:
        """The best concept so far."""
        return Concept.load(self.best_path)

    def finish(self) -> None:
        """Put a training that has come to its end, pictures included, in the place of the one that ended before."""
        _ended_here.add(self.path)
        folder = self._finished()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        _move((self.best_path, self.path), folder)

    def _bring_back(self) -> None:
        """Have a training go on from its end, if it ended last, and another process did that.

        Who asks for it once more while ComfyUI runs has it done once more. The best concept is of no use without the checkpoint.
        """
        folder = self._finished()
        if self.path not in _ended_here and (folder / self.path.name).exists():
            _move([folder / path.name for path in (self.best_path, self.path)], self.path.parent)

    def _finished(self) -> Path:
        return self.path.parent / FINISHED


def judgement_of(concept: Concept) -> Judgement:
    """What was thought of a concept while it was taught."""
    return Judgement(float(concept.training["held_out_loss"]), float(concept.training["followed"]))


def _move(files: Sequence[Path], folder: Path) -> None:
    """Those that there are, in this order."""
    for file in files:
        if file.exists():
            file.replace(folder / file.name)
