"""Write a concept in the format of perfusion-pytorch, as an input for the workflow import_a_concept.

`python -m scripts.generate.foreign_file`, in the set-up's environment, writes the demo's concept as models/perfusion/monster.pt.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from perfusion_core.concept import Concept
from scripts.setup import bootstrap, steps
from scripts.setup.bootstrap import CHECKPOINT

CONCEPT, FOREIGN = "monster_00001.safetensors", "monster.pt"


def main() -> int:
    """Write the demo's concept; SetupError if it has not been trained yet."""
    base = bootstrap.locate().base
    source = base / "models" / "perfusion" / CONCEPT
    if not source.exists():
        raise steps.SetupError(f"expected the demo's concept {source}, but it is not there; run python scripts/demo.py first.")
    steps.say(f"  {write(base, source, FOREIGN)}")
    return 0


def write(base: Path, source: Path, name: str) -> Path:
    """Write a concept of the demo base as `name` into the concepts' folder, in perfusion-pytorch's format."""
    concept = Concept.load(source)
    pairs = []
    with safe_open(base / "models" / "checkpoints" / CHECKPOINT, "pt") as checkpoint:
        for layer, values in concept.values.items():
            to_k = checkpoint.get_tensor(f"model.diffusion_model.{layer}.to_k.weight").float()
            keys = concept.keys.get(layer, to_k @ concept.superclass_encoding)
            pairs += [[concept.target_input[None], outputs[None]] for outputs in (keys, values)]
    # The pack's files store C⁻¹ i* instead of C⁻¹. This is the smallest of all C⁻¹ consistent with it; one concept needs no other.
    probe = concept.probe / (concept.probe @ concept.target_input)
    (word,) = concept.word.values()
    path = base / "models" / "perfusion" / name
    torch.save({"embed_params": word[:1], "key_value_params": pairs, "C_inv": torch.outer(probe, probe)}, path)
    return path


if __name__ == "__main__":
    steps.exit_with(main)
