"""Training on a device that is not the processor, against the processor: run by test_device.py in the host's own interpreter.

`python -m tests.inside_device_training COMFYUI CHECKPOINT LIBRARY FOLDER` prints one JSON object of what was measured.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perfusion_fleet import inside
from tests import accelerator

COMFYUI, CHECKPOINT, LIBRARY, FOLDER = map(Path, sys.argv[1:])
accelerator.register(LIBRARY)
inside.enter_with_pack(COMFYUI, cpu=False)

import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from scripts.harness import seeded_models  # noqa: E402
from tests import tiny  # noqa: E402

host, training = (inside.part(name) for name in ("nodes.host", "perfusion_core.training.loop"))
SETTINGS = training.Settings(steps=4, batch=2, micro=2, seed=1)
PRECISIONS = {"float32": torch.float32, "float16": torch.float16}
PLACES = ("get_torch_device", "unet_offload_device", "text_encoder_device", "text_encoder_offload_device", "vae_device")


def main() -> dict:
    """All that is measured."""
    with torch.inference_mode():
        model, clip = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT), te_model_options=seeded_models.FEW)[:2]
        with on_the_processor():
            known, words = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT), te_model_options=seeded_models.FEW)[:2]
        (there, theirs), (here, ours) = tiny.sdxl(FOLDER), tiny.sdxl(FOLDER)
    there.load_device = theirs.patcher.load_device = model.load_device
    ours.patcher.load_device = ours.patcher.offload_device = here.load_device
    wanted = gradients(known, words, torch.float32)
    of_sdxl = gradients(here, ours, torch.float32)
    found: dict[str, Any] = {"SD1.5": compared(model, clip, wanted), "SDXL": compared(there, theirs, of_sdxl)}
    found["places"] = [each.load_device.type for each in (model, clip.patcher, known, words.patcher)]
    found["the encoder on the processor"] = apart(gradients(model, words, torch.bfloat16), wanted)
    patched = [with_lora(each) for each in (clip, words)]
    of_lora = gradients(known, patched[1], torch.float32)
    found["a LoRA on the encoder"] = apart(gradients(model, patched[0], torch.float32), of_lora)
    return found | {"without that LoRA": apart(wanted, of_lora)}


@contextlib.contextmanager
def on_the_processor() -> Iterator[None]:
    """Make the host load onto the processor within the context."""
    before = {name: getattr(comfy.model_management, name) for name in PLACES}
    for name in PLACES:
        setattr(comfy.model_management, name, lambda *_: torch.device("cpu"))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(comfy.model_management, name, function)


def with_lora(clip: Any) -> Any:
    """A CLIP with a change of one of its weights, as a LoRA makes one."""
    patched = clip.clone()
    seeded_models.change(patched.patcher, "clip_l.transformer.text_model.encoder.layers.1.mlp.fc1.weight", 0.02)
    return patched


def compared(model: Any, clip: Any, wanted: list[Tensor]) -> dict[str, float]:
    """How far gradients on the device are from the processor's in float32, in each precision."""
    return {name: apart(gradients(model, clip, precision), wanted) for name, precision in PRECISIONS.items()}


def gradients(model: Any, clip: Any, precision: torch.dtype) -> list[Tensor]:
    """The gradients of one step, on the processor."""
    generator, masks = torch.Generator().manual_seed(1), torch.ones(2, 2, 1, 8, 8)
    latents = torch.randn(2, 2, 4, 8, 8, generator=generator)
    with host.gradients_enabled():
        student = host.TrainableModel(model, clip, precision)
        state = training.initial_state(student, "monster", SETTINGS)
        given = latents.to(student.device), masks.to(student.device), torch.eye(len(state.target_input)).double()
        draw = training.BatchSample.of(SETTINGS, 0, given[0][:, 0].cpu())
        found = training.gradients_in_range(student, state, draw, *given, SETTINGS)[0]
        student.release_weights()
    return [each.cpu().float() for each in found]


def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest distance of a gradient from what it should be, as a share of that one's length."""
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, wanted, strict=True))


print(json.dumps(main()))
