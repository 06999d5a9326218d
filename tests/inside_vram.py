"""Concepts where weights wait beside the device and come when they are needed: run by test_flags.py in the host's interpreter.

`python -m tests.inside_vram COMFYUI CHECKPOINT CONCEPT LIBRARY FLAG` prints one JSON object of what was measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from scripts import inside
from tests import accelerator

COMFYUI, CHECKPOINT, CONCEPT, LIBRARY = map(Path, sys.argv[1:5])
accelerator.register(LIBRARY)
# So much of the device's 8 GB is kept free that of the demo base's UNet, which has 85 MB in half precision, a part fits.
inside.enter_with_pack(COMFYUI, cpu=False, arguments=(sys.argv[5], "--reserve-vram", "7.16"))

import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from tests.differences import worst  # noqa: E402

host = inside.part("nodes.host")
TEXT = "a photo of a {} on the grass"


def sample(model: Any, clip: Any, text: str) -> Tensor:
    """Latents of 64 pixels after two steps."""
    latents = torch.zeros(1, 4, 8, 8)
    noise, conds = comfy.sample.prepare_noise(latents, 1), host.conditionings(clip, (text, ""))
    return comfy.sample.sample(model, noise, 2, 3.0, "euler", "normal", *conds, latents, disable_pbar=True, seed=1)


@torch.inference_mode()
def main() -> dict:
    """All that is measured."""
    model, clip, _ = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT))[:3]
    concept = inside.part("perfusion_core.concept").Concept.load(CONCEPT)
    edited, knowing = host.model_with_edit(model, (concept,), "exact"), host.clip_with_words(clip, (concept,))
    named = sample(edited, knowing, TEXT.format(concept.trigger))
    found = {
        "share on the device": edited.loaded_size() / edited.model_size(),
        "plain prompt": worst(sample(edited, knowing, TEXT.format("teddy")), sample(model, clip, TEXT.format("teddy"))),
        "concept": worst(named, sample(model, knowing, TEXT.format(concept.trigger))),
    }
    comfy.model_management.unload_all_models()
    comfy.model_management.vram_state = comfy.model_management.VRAMState.HIGH_VRAM
    whole = sample(edited, knowing, TEXT.format(concept.trigger))
    return found | {"against all on the device": worst(whole, named), "share later": edited.loaded_size() / edited.model_size()}


if __name__ == "__main__":
    print(json.dumps(main()))
