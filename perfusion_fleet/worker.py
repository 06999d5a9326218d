"""One worker of a fleet: a process that runs the host, holds the model and trains with the pack's own node."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion_fleet import inside
from perfusion_fleet.table import Job

if TYPE_CHECKING:
    from torch import Tensor

EXTRA_PATHS = "extra_model_paths.yaml"


@dataclass(frozen=True)
class Place:
    """The paths and options of all workers; the paths are the same on every machine.

    Attributes:
        comfyui: the folder that contains main.py.
        base: the host's base directory, which contains models/.
        checkpoint: name as listed by the host's checkpoint loader.
        cpu: whether to compute on the CPU.
        precision: of the saved files, one of the options of Save Concept.
    """

    comfyui: str
    base: str
    checkpoint: str
    cpu: bool
    precision: str


@dataclass(frozen=True)
class Answer:
    """The result of a job: the content of the concept's file, or in `fault` a sentence that says why there is none."""

    content: bytes = b""
    fault: str = ""


class Worker:
    """The class of the Ray actors; each runs one call at a time."""

    def __init__(self, place: Place) -> None:
        self.place, self.models = place, None

    def enter(self) -> None:
        """Set up the host in this process; does nothing if that is already done."""
        if inside.PACK in sys.modules:
            return
        inside.enter_with_pack(Path(self.place.comfyui), self.place.cpu, ["--base-directory", self.place.base])
        extra = Path(self.place.comfyui) / EXTRA_PATHS
        if extra.is_file():
            from utils.extra_config import load_extra_path_config

            load_extra_path_config(str(extra))

    def check(self, jobs: Sequence[Job]) -> list[str]:
        """Return a sentence for each fault in the jobs that the training node would reject, and for a missing checkpoint."""
        self.enter()
        import folder_paths

        faults = [f"{job.name}: {fault}" for job in jobs for fault in faults_of(job)]
        if folder_paths.get_full_path("checkpoints", self.place.checkpoint) is None:
            names = ", ".join(folder_paths.get_filename_list("checkpoints")[:10]) or "none"
            faults.append(f"There is no checkpoint {self.place.checkpoint} in {self.place.base}; available: {names}.")
        return faults

    def ready(self) -> str:
        """Load the model and return a description of this worker, such as "process 123 on host, cpu"."""
        self.enter()
        import torch
        from comfy.model_management import get_torch_device

        import nodes

        with torch.inference_mode():
            self.models = nodes.CheckpointLoaderSimple().load_checkpoint(self.place.checkpoint)[:3]
        return f"process {os.getpid()} on {socket.gethostname()}, {get_torch_device()}"

    def teach(self, job: Job) -> Answer:
        """Train a concept, as a graph with the same node would.

        An error can leave a graphics card's context in a state in which everything after it fails too. This process then exits, so
        that Ray starts another one and the job is retried.
        """
        import torch

        core = inside.part("perfusion_core")
        try:
            with torch.inference_mode():
                return Answer(saved(job, self.place.precision, self.models))
        except core.PerfusionError as error:
            return Answer(fault=str(error))
        except Exception:
            if not device_computes():
                os._exit(1)
            raise


def device_computes() -> bool:
    """Return whether the host's device can still add numbers."""
    import torch
    from comfy.model_management import get_torch_device

    try:
        return float(torch.ones(2, device=get_torch_device()).sum()) == 2
    except RuntimeError:
        return False


def faults_of(job: Job) -> list[str]:
    """Return a sentence for each fault in a job that the training node would reject."""
    from perfusion_fleet import settings

    train = inside.part("nodes.training.train_concept")

    def fault_of(check: Callable[[], object]) -> list[str]:
        try:
            check()
        except settings.PerfusionError as error:
            return [str(error)]
        return []

    def check_prompts() -> None:
        (options,) = options_of(settings.chosen(job.settings), job)
        options.training_prompts(job.trigger)
        options.picture_prompts(job.trigger)

    faults = [
        *fault_of(lambda: train.settings_of(settings.chosen(job.settings)).check()),
        *fault_of(lambda: train.check_words(job.superclass, job.trigger)),
        *fault_of(lambda: inside.part("perfusion_core.training.lesson").as_templates(job.captions, job.trigger, "Caption")),
    ]
    return faults or fault_of(check_prompts)


def options_of(chosen: Mapping[str, object], job: Job) -> Sequence[Any]:
    """Return the list of the one output that Training Options has for a job's values of widgets."""
    from perfusion_fleet import settings

    further = {name: [chosen[name]] for name in settings.further_widgets()}
    return settings.Options.PerfusionTrainingOptions.execute(captions=list(job.captions), **further).args


def saved(job: Job, precision: str, models: tuple[Any, Any, Any]) -> bytes:
    """Return the content of the file that Train Concept and Save Concept would produce for a job."""
    from perfusion_fleet import settings

    concepts = inside.part("nodes.concepts")
    images, masks = loaded(job)
    model, clip, vae = models
    given = {**settings.chosen(job.settings), "superclass": job.superclass, "trigger": job.trigger}
    options, further = options_of(given, job), settings.further_widgets()
    lists = {name: [value] for name, value in given.items() if name not in further}
    tensors = {"images": images, "masks": masks, "options": options}
    made = settings.PerfusionTrain.execute(model=[model], clip=[clip], vae=[vae], **tensors, **lists)
    (concept,) = made.args[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{job.name}.safetensors"
        concepts.signed(concept, job.author, job.license).save(path, concepts.PRECISIONS[precision])
        return path.read_bytes()


def loaded(job: Job) -> tuple[list[Tensor], list[Tensor] | None]:
    """Return the images [1, h, w, 3] and masks [1, h, w] of a job, loaded by the host's own nodes; None for no masks."""
    import folder_paths

    import nodes

    def load(node: Any, file: str, *more: str) -> tuple[Tensor, ...]:
        # These nodes read only from the host's input folder.
        folder_paths.set_input_directory(str(Path(file).parent))
        return getattr(node(), node.FUNCTION)(Path(file).name, *more)

    images, masks = [], []
    for picture, mask in zip(job.pictures, job.masks or [""] * len(job.pictures), strict=True):
        image, alpha = load(nodes.LoadImage, picture)
        images.append(image)
        masks.append(load(nodes.LoadImageMask, mask, "red")[0] if mask else alpha)
    return images, masks if job.masks else None
