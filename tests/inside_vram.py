"""Concepts where weights wait beside the device and come when they are needed: run by test_flags.py in the host's interpreter.

`python -m tests.inside_vram COMFYUI CHECKPOINT CONCEPT LIBRARY` prints one JSON object of what was measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from perfusion_fleet import inside
from scripts.generate.make_workflows import TRAINING
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

from scripts.harness import seeded_models  # noqa: E402
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
    found = {name: each | {"against all there": worst(drawn[name], drawn["HIGH_VRAM"])} for name, each in found.items()}
    return found | {"taught": taught(*comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT))[:3])}


def taught(model: Any, clip: Any, vae: Any) -> dict:
    """A training with previews and a LoRA, where weights wait beside the device and where all are there."""
    usual, drawn = host.draw, []
    host.draw = lambda *given, **how: drawn.append(usual(*given, **how | {"steps": 1})) or drawn[-1]
    train, host_state = inside.part("nodes.training.train_concept"), comfy.model_management
    covariance, with_lora = seeded_models.covariance_of(clip), seeded_models.with_changed_values(model, 0.1)
    widgets = TRAINING | {"superclass": "monster", "trigger": "<it>", "size": 64, "steps": 2, "batch": 1, "at_once": 1}
    widgets |= {"lock": "local", "edit_mode": "exact", "precision": "auto", "preview_every": 1, "seed": 0}
    images, losses, base = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1)), {}, []
    for state in ("LOW_VRAM", "HIGH_VRAM"):
        host_state.unload_all_models()
        host_state.vram_state = host_state.VRAMState[state]
        base.append(sample(with_lora, clip, TEXT.format("monster")))
        given = {"model": with_lora, "clip": clip, "vae": vae, "images": images, "covariance": covariance} | widgets
        concept = train.PerfusionTrain.execute(**{key: [value] for key, value in given.items()}).args[0]
        losses[state] = concept[0].training["loss"]
        base.append(sample(with_lora, clip, TEXT.format("monster")))
    return {
        "losses": losses,
        "the base afterwards": max(worst(base[0], base[1]), worst(base[2], base[3])),
        "pictures": [bool(picture.isfinite().all()) for picture in drawn],
    }


if __name__ == "__main__":
    print(json.dumps(main()))
