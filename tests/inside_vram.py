"""Concepts where weights wait beside the device and come when they are needed: run by test_flags.py in the host's interpreter.

`python -m tests.inside_vram COMFYUI CHECKPOINT CONCEPT LIBRARY` prints one JSON object of what was measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from scripts.harness import inside
from tests import accelerator

COMFYUI, CHECKPOINT, CONCEPT, LIBRARY = map(Path, sys.argv[1:])
accelerator.register(LIBRARY)
# So much of the device's 8 GB is kept free that of the demo base's UNet, which has 85 MB in half precision, a part fits.
inside.enter_with_pack(COMFYUI, cpu=False, arguments=("--lowvram", "--reserve-vram", "7.16"))

import comfy.model_management  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from scripts.harness.differences import worst  # noqa: E402

host = inside.part("nodes.host")
TEXT = "a photo of a {} on the grass"


def sample(model: Any, clip: Any, text: str) -> Tensor:
    """Latents of 64 pixels after two steps."""
    latents = torch.zeros(1, 4, 8, 8)
    noise, conds = comfy.sample.prepare_noise(latents, 1), host.conditionings(clip, (text, ""))
    return comfy.sample.sample(model, noise, 2, 3.0, "euler", "normal", *conds, latents, disable_pbar=True, seed=1)


@torch.inference_mode()
def main() -> dict:
    """All that is measured: as the flag had it, as --novram has it, and with everything on the device."""
    model, clip, _ = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT))[:3]
    concept = inside.part("perfusion_core.concept").Concept.load(CONCEPT)
    edited, knowing = host.model_with_edit(model, (concept,), "exact"), host.clip_with_words(clip, (concept,))
    plain, named = TEXT.format("monster"), TEXT.format(concept.trigger)
    drawn, found = {}, {}
    for state in ("LOW_VRAM", "NO_VRAM", "HIGH_VRAM"):
        comfy.model_management.unload_all_models()
        before = comfy.model_management.vram_state.name
        comfy.model_management.vram_state = comfy.model_management.VRAMState[state]
        drawn[state] = sample(edited, knowing, named)
        found[state] = {
            "before": before,
            "share on the device": edited.loaded_size() / edited.model_size(),
            "plain prompt": worst(sample(edited, knowing, plain), sample(model, clip, plain)),
            "concept": worst(drawn[state], sample(model, knowing, named)),
        }
    return {name: each | {"against all there": worst(drawn[name], drawn["HIGH_VRAM"])} for name, each in found.items()}


if __name__ == "__main__":
    print(json.dumps(main()))
