"""The pack on a device that is not the processor: run by test_device.py in the host's own interpreter.

`python -m tests.inside_device COMFYUI CHECKPOINT CONCEPT LIBRARY` prints one JSON object of what was measured.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from perfusion_fleet import inside
from tests import accelerator

COMFYUI, CHECKPOINT, CONCEPT, LIBRARY = map(Path, sys.argv[1:])
accelerator.register(LIBRARY)
inside.enter_with_pack(COMFYUI, cpu=False)

import comfy_aimdo.control  # noqa: E402

comfy_aimdo.control.init("cuda")  # what moves weights in parts; the host does so before all else

import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from scripts.harness.differences import worst  # noqa: E402

host = inside.part("nodes.host")
Concept = inside.part("perfusion_core.concept").Concept
TEXT = "a photo of a {} on the grass"


def sample(model: Any, clip: Any, text: str, steps: int = 1) -> Tensor:
    """Latents of 64 pixels."""
    latents = torch.zeros(1, 4, 8, 8)
    noise, conds = comfy.sample.prepare_noise(latents, 1), host.conditionings(clip, (text, "blurry"))
    return comfy.sample.sample(model, noise, steps, 3.0, "euler", "normal", *conds, latents, disable_pbar=True, seed=1)


def main() -> dict:
    """All that is measured."""
    model, clip, vae = loaded()
    with torch.inference_mode():
        concept = Concept.load(CONCEPT)
        where = {"device": model.load_device.type, "weights": str(model.model.get_dtype())}
        found = used(model, clip, concept) | watched(model, clip, concept)
    return where | found | taught(model, clip, vae) | divided()


def loaded() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE, as a node loads them."""
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT))[:3]


def used(model: Any, clip: Any, concept: Any) -> dict:
    """Concepts in all modes, regions and locks."""
    plain, found = sample(model, clip, TEXT.format("monster")), {}
    drawn = {}
    for mode in ("exact", "approximate", "paper", "static"):
        edited, knowing = host.model_with_edit(model, (concept,), mode), host.clip_with_words(clip, (concept,))
        drawn[mode] = sample(edited, knowing, TEXT.format(concept.trigger))
        if mode == "exact":
            found["plain prompt"] = worst(sample(edited, knowing, TEXT.format("monster")), plain)
    found["modes differ"] = min(worst(drawn[mode], plain) for mode in drawn)
    for name, region in (("everywhere", torch.ones(8, 8)), ("left", torch.eye(8).cumsum(1).flip(1))):
        stack = (replace(concept, region=region), replace(concept, trigger="<other>", region=1 - region + 1e-3))
        both, words = host.model_with_edit(model, stack[: 1 + (name == "left")], "exact"), host.clip_with_words(clip, stack)
        found[f"region {name}"] = worst(sample(both, words, TEXT.format(concept.trigger)), drawn["exact"])
    locked = host.encode_locked(knowing, TEXT.format(concept.trigger))
    return found | {"locked": all(bool(each[0].isfinite().all()) for each in locked)}


def watched(model: Any, clip: Any, concept: Any) -> dict:
    """Recorded attention, a kept layout and the gates' report."""
    edited, knowing = host.model_with_edit(model, (concept,), "exact"), host.clip_with_words(clip, (concept,))
    recorder = host.Recorder()
    samples = sample(host.model_watched(edited, recorder), knowing, TEXT.format(concept.trigger), steps=2)
    run = recorder.run_of(samples)
    kept = sample(host.model_with_layout(edited, run, 0.0, 1.0), knowing, TEXT.format(concept.trigger), steps=2)
    (positive,) = host.conditionings(knowing, (TEXT.format(concept.trigger),))
    return {
        "map": float(run.map_of(concept.trigger).max()),
        "a layout of its own": worst(kept, samples),
        "gates": bool(host.gate_report(edited, positive).prompts),
    }


def loaded_kinds(device: torch.device) -> list[str]:
    """The classes of the models that the host has on a device."""
    managed = comfy.model_management.current_loaded_models
    return sorted(type(each.model.model).__name__ for each in managed if each.device == device)


def taught(model: Any, clip: Any, vae: Any) -> dict:
    """A found object, and trainings in half and in whole precision; and what they leave behind."""
    training, lessons, objects, pictures = (
        inside.part(name)
        for name in (
            "perfusion_core.training.loop",
            "perfusion_core.training.lesson",
            "nodes.find_object",
            "nodes.training.training_pictures",
        )
    )
    picture = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0)).to(model.load_device)  # as with --gpu-only
    with torch.inference_mode():
        mask = objects.mask_of(model, clip, vae, picture, "monster", 64, 0)
        (prepared,) = pictures.prepare([picture[None]], [mask[None].to(model.load_device)], 64)
        latents, weights = pictures.latent_forms(model, vae, prepared.images, prepared.masks, with_small=False)
    losses, settings = {}, training.Settings(steps=1, batch=1)
    for name, precision in (("half", host.best_precision(model.load_device)), ("whole", torch.float32)):
        with host.gradients_enabled():
            student = host.TrainableModel(model, clip, precision)
            state = training.initial_state(student, "monster", settings)
            lesson = lessons.Lesson((lessons.Bucket(latents, weights),), torch.eye(768).double()).to(student.device)
            list(training.train(student, state, lesson, settings))
        losses[name] = state.losses[0]
    counts: list[int] = []

    class Crowded(host.TrainableModel):
        """Has no memory the first time."""

        def objective(self, latents: Tensor, *given: object) -> tuple[Tensor, Tensor]:
            counts.append(len(latents))
            if len(counts) == 1:
                raise torch.OutOfMemoryError("out of memory")
            return super().objective(latents, *given)

    with host.gradients_enabled():
        student, settings = Crowded(model, clip, torch.float32), training.Settings(steps=1, batch=2, micro=2)
        state = training.initial_state(student, "monster", settings)
        before = loaded_kinds(student.device)
        list(inside.part("nodes.training.schedule").steps(student, state, lesson, settings))
        again = student.unload_others()
    projected = host.projections(model, torch.ones(1, 768))
    whole = [each.is_inference() for each in (*model.model.parameters(), *clip.cond_stage_model.parameters())]
    return {
        "mask": [float(mask.min()), float(mask.max()), mask.device.type],
        "losses": losses,
        "pictures at once": counts,
        "loaded": [before, loaded_kinds(student.device)],
        "others again": again,
        "projected": len(projected) == len(host.layers_of(model)),
        "whole": all(whole),
    }


def on_the_device(*modules: Any) -> list[bool]:
    """Whether models have weights there."""
    return [any(each.device.type == accelerator.NAME for each in module.parameters()) for module in modules]


def divided() -> dict:
    """What is taught of models that the host moves in parts, as it does on newer cards; they themselves are never moved here."""
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    model, clip, _ = loaded()
    with host.gradients_enabled():
        student = host.TrainableModel(model, clip, torch.float32)
        encodings = student.encode(["a {}"], student.embed("monster")).tokens
        modules = student.model.model, student.clip.patcher.model
        whole = not student.model.is_dynamic() and not student.clip.patcher.is_dynamic()
        copies = [on_the_device(*modules)]
        student.close()
        copies.append(on_the_device(*modules))
    loaded_before = loaded_kinds(model.load_device)
    host.projections(model, torch.ones(1, 768))
    loaded_now = loaded_kinds(model.load_device)
    kept = model.non_dynamic_delegate_model, clip.patcher.non_dynamic_delegate_model
    model.cached_patcher_init = model.non_dynamic_delegate_model = None
    try:
        host.projections(model, torch.ones(1, 768))
        refused = ""
    except inside.part("perfusion_core").PerfusionError as error:
        refused = str(error)
    return {
        "in parts": model.is_dynamic() and clip.patcher.is_dynamic(),
        "whole for teaching": whole,
        "encodings": list(encodings.shape),
        "copies on the device": copies,
        "copies kept": kept != (None, None),
        "loaded around projecting": [loaded_before, loaded_now],
        "cannot be read again": refused,
    }


if __name__ == "__main__":
    print(json.dumps(main()))
