"""The measurements of one process: `python -m benchmarks.card.job JOB`, where JOB is a JSON file with the fields of `Job`.

Prints one JSON object; failures are under "failed", each with its reason.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import Peak
from perfusion_fleet import inside

RATES = {"word_rate": 1e-3, "output_rate": 0.03}
FEW = 3
"""Number of steps after which losses and learned numbers are compared."""


@dataclass(frozen=True)
class Job:
    """A process.

    Attributes:
        comfyui: The host's folder.
        checkpoint: File with the seeded checkpoint; written if missing.
        reference: File with the result of the training on the CPU.
        cpu: Whether to compute on the CPU.
        flags: Further flags of the host.
        parts: Names of the measurements, functions of `Card`.
        small: Whether this is a rehearsal, with a small model.
    """

    comfyui: str
    checkpoint: str
    reference: str
    cpu: bool
    flags: list[str]
    parts: list[str]
    small: bool

    @property
    def side(self) -> int:
        """Side of the pictures in pixels."""
        return 64 if self.small else 512


class Card:
    """The measurements, with the host in this process."""

    def __init__(self, job: Job) -> None:
        if importlib.util.find_spec("av") is None:
            sys.modules["av"] = types.ModuleType("av")  # the host imports it for videos
        inside.enter_with_pack(Path(job.comfyui), job.cpu, job.flags)
        self.dynamic = not job.cpu and dynamic_vram()
        self.job, self.host = job, inside.part("nodes.host")
        self.training, self.train = inside.part("perfusion_core.training.loop"), inside.part("nodes.training.train_concept")
        model = importlib.import_module("benchmarks.card.model")
        if not Path(job.checkpoint).exists():
            model.write(Path(job.checkpoint), job.small)
        self.model, self.clip, self.vae = model.load(Path(job.checkpoint), job.small)
        self.device = self.model.load_device
        self.seeded = importlib.import_module("scripts.harness.seeded_models")
        self.patched = self.seeded.with_changed_values(self.model, 0.05)
        """The MODEL with a LoRA."""

    def about(self) -> dict:
        """Describe the device and the weights that this process uses."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else self.device.type
        weights = str(self.model.model.get_dtype())
        return {"device": name, "torch": torch.__version__, "weights": weights, "dynamic VRAM": self.model.is_dynamic()}

    # ---- trainings without the node --------------------------------------------------------------------------------------------

    def lesson(self, steps: int, precision: torch.dtype, batch: int = 1) -> tuple[list[float], list[Tensor], float]:
        """Train on seeded latents; return the losses, the learned tensors on the CPU, and the seconds of a later step."""
        settings = self.training.Settings(steps=steps, batch=batch, micro=batch, seed=1, **RATES)
        lessons = inside.part("perfusion_core.training.lesson")
        generator, size = torch.Generator().manual_seed(0), self.job.side // 8
        latents, marks = torch.randn(2, 2, 4, size, size, generator=generator), [time.perf_counter()]
        with (
            self.host.gradients_enabled(),
            contextlib.closing(self.host.TrainableModel(self.model, self.clip, precision)) as student,
        ):
            state = self.training.initial_state(student, "teddy", settings)
            pictures = lessons.Bucket(latents, torch.ones(2, 2, 1, size, size))
            lesson = lessons.Lesson((pictures,), torch.eye(768).double()).to(student.device)
            for _ in self.training.train(student, state, lesson, settings):
                marks.append(time.perf_counter())
        later = (marks[-1] - marks[1]) / max(1, len(marks) - 2)
        return state.losses, [each.detach().cpu().float().clone() for each in state.learned()], later

    def reference(self) -> dict:
        """Train on the CPU, for the comparison."""
        losses, learned, _ = self.lesson(FEW, torch.float32)
        torch.save({"losses": losses, "learned": learned}, self.job.reference)
        return {"losses": losses}

    def same(self) -> dict:
        """Compare a short training with that on the CPU, in float32 and in the precision that `auto` chooses."""
        known, found = torch.load(self.job.reference, weights_only=True), {}
        for precision in dict.fromkeys((torch.float32, self.host.best_precision(self.device))):
            losses, learned, _ = self.lesson(FEW, precision)
            by_loss = max(abs(a / b - 1) for a, b in zip(losses, known["losses"], strict=True))
            by_number = max(float((a - b).norm() / b.norm()) for a, b in zip(learned, known["learned"], strict=True))
            found[str(precision)] = {"losses apart": by_loss, "learned apart": by_number}
        return found

    def repeated(self) -> dict:
        """Return whether the same seed gives a bit-identical concept."""
        one, other = (self.lesson(FEW, self.host.best_precision(self.device))[1] for _ in range(2))
        apart = max(float((a - b).norm() / b.norm()) for a, b in zip(one, other, strict=True))
        return {"the same to the bit": all(map(torch.equal, one, other)), "apart": apart}

    # ---- trainings with the node -----------------------------------------------------------------------------------------------

    def taught(self) -> dict:
        """Train with previews and a LoRA through the node; the base must be the same afterwards."""
        steps = 4 if self.job.small else 60
        before = self.drawn(self.patched)
        with measured() as cost:
            concept = self.node(self.patched, steps=steps, preview_every=steps // 2)
        after = self.drawn(self.patched)
        return {"steps": steps, "loss": concept.training["loss"], "base the same to the bit": torch.equal(before, after)} | cost

    def presets(self) -> dict:
        """Return the peak memory in GB with the preset for each card size, at the node's default batch size."""
        found = {}
        for preset in self.train.CARDS if not self.job.small else list(self.train.CARDS)[:1]:
            with measured() as cost:
                self.node(self.model, steps=2, batch=2 if self.job.small else 16, memory=preset)
            found[preset] = cost["peak GB"]
        return found

    def node(self, model: Any, **widgets: object) -> Any:
        """Run Train Concept on seeded pictures and return its concept."""
        given = {
            "superclass": "teddy", "trigger": "<it>", "size": self.job.side, "batch": 2, "seed": 0, "train_bias": 0.75,
            "train_temperature": 0.1, "lock": "local", "edit_mode": "exact", "flip": 0.5, "at_once": 2, "precision": "auto",
            "preview_every": 0, "min_snr": 0.0, **RATES,
        }  # fmt: skip
        images = torch.rand(2, self.job.side, self.job.side, 3, generator=torch.Generator().manual_seed(1))
        objects = {
            "model": model,
            "clip": self.clip,
            "vae": self.vae,
            "images": images,
            "covariance": self.seeded.covariance_of(self.clip),
        }
        with torch.inference_mode():
            lists = {name: [value] for name, value in (objects | given | widgets).items()}
            return self.train.PerfusionTrain.execute(**lists).args[0][0]

    @torch.inference_mode()
    def drawn(self, model: Any) -> Tensor:
        """Return the latents of a plain prompt after two steps."""
        sample = importlib.import_module("comfy.sample")
        latent = torch.zeros(1, 4, self.job.side // 8, self.job.side // 8)
        prompts = self.host.conditionings(self.clip, ("a photo of a teddy", ""))
        how = {"disable_pbar": True, "seed": 0}
        return sample.sample(model, sample.prepare_noise(latent, 0), 2, 3.0, "euler", "normal", *prompts, latent, **how).cpu()

    # ---- beside others ---------------------------------------------------------------------------------------------------------

    def beside_lora(self) -> dict:
        """Return the seconds per step of Train Concept and of the host's Train LoRA, with the same number of pictures."""
        batch, count = (1, 2) if self.job.small else (4, 8)
        ours = self.lesson(count, self.host.best_precision(self.device), batch)[2]
        node = importlib.import_module("comfy_extras.nodes_train").TrainLoraNode
        widgets = importlib.import_module("benchmarks.fidelity.methods").WIDGETS["lora"]
        known = inspect.signature(node.execute).parameters  # older hosts have fewer of these
        widgets = {name: value for name, value in widgets.items() if name in known}
        size = self.job.side // 8
        seconds = []
        for steps in (1, 1 + count):
            latents = {"samples": torch.randn(batch, 4, size, size)}
            positive = [each for _ in range(batch) for each in self.host.conditionings(self.clip, ("a teddy",))[0]]
            given = widgets | {"batch_size": batch, "grad_accumulation_steps": 1, "steps": steps, "seed": 0}
            if self.device.type == "cpu":
                given |= {"training_dtype": "fp32"}
            start = time.perf_counter()
            with torch.inference_mode():
                node.execute(model=[self.model], latents=[latents], positive=[positive], **{k: [v] for k, v in given.items()})
            seconds.append(time.perf_counter() - start)
        theirs = (seconds[1] - seconds[0]) / count
        return {"ours": ours, "Train LoRA": theirs, "ratio": ours / theirs}

    def covariance(self) -> dict:
        """Measure the covariance over 100,000 captions."""
        count = 200 if self.job.small else 100_000
        texts = inside.part("perfusion_core.captions").captions(count, seed=3)
        with measured() as cost, torch.inference_mode():
            inside.part("nodes.measure_text_encoder").measure(self.clip, texts)
        return {"captions": count} | cost


def dynamic_vram() -> bool:
    """Set up the host's dynamic VRAM as the host does when it starts; return whether it is in use."""
    arguments = importlib.import_module("comfy.cli_args")
    if not arguments.enables_dynamic_vram():
        return False
    control, management = (importlib.import_module(name) for name in ("comfy_aimdo.control", "comfy.model_management"))
    control.init()
    try:
        ready = control.init_devices((each.index, 0) for each in management.get_all_torch_devices())
    except TypeError:  # the interface before 0.4.10
        ready = control.init_devices(each.index for each in management.get_all_torch_devices())
    if ready:
        patcher = importlib.import_module("comfy.model_patcher")
        patcher.CoreModelPatcher = patcher.ModelPatcherDynamic
        importlib.import_module("comfy.memory_management").aimdo_enabled = True
    return bool(ready)


@contextlib.contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Measure the seconds and the peak memory of the context: the card's, or that of the process."""
    found: dict[str, float] = {}
    card, ended, most = torch.cuda.is_available(), threading.Event(), [0]

    def watch() -> None:
        while not ended.wait(0.01):
            free, whole = torch.cuda.mem_get_info()
            most[0] = max(most[0], whole - free)

    peak, start = Peak(), time.perf_counter()
    watching = threading.Thread(target=watch) if card else None
    if watching:
        watching.start()
    try:
        yield found
    finally:
        ended.set()
        if watching:
            watching.join()
        found["seconds"] = time.perf_counter() - start
        found["peak GB"] = most[0] / 1e9 if card else peak.grown_mb() / 1000


def run(job: Job) -> dict:
    """Run all parts of a job; if one fails, the others still run."""
    card, found, failed = Card(job), {}, {}
    parts: dict[str, Callable[[], dict]] = {name: getattr(card, name) for name in ("about", *job.parts)}
    for name, part in parts.items():
        try:
            found[name] = part()
        except Exception as error:  # this command exists to report whatever goes wrong on an unknown card
            failed[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
    return found | ({"failed": failed} if failed else {})


if __name__ == "__main__":
    print(json.dumps(run(Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))))
