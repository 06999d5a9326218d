"""The layouts of SDXL and of what was made of it, whole, in the real host: run by test_families.py in the host's own interpreter.

`python -m tests.inside_layouts COMFYUI` prints as JSON, of each layout, its family, its layers and what it says to concepts of all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from scripts.harness import inside

inside.enter_with_pack(Path(sys.argv[1]))

import torch  # noqa: E402

from tests import tiny  # noqa: E402

host = inside.part("nodes.host")
PerfusionError = inside.part("perfusion_core").PerfusionError
Concept = inside.part("perfusion_core.concept").Concept


def said(model: object, concept: object) -> str:
    """What is said to a concept; nothing if it fits."""
    try:
        host.check_fit(concept, model)
    except PerfusionError as error:
        return str(error)
    return ""


def concept_for(model: object) -> object:
    """A concept of zeros that fits a model."""
    wide = torch.zeros(host.width_of(model))
    outputs = {layer: torch.zeros(width) for layer, width in host.layers_of(model).items()}
    return Concept("<it>", "teddy", host.family_of(model), {}, wide, wide, wide, outputs)


models = {name: tiny.weightless(name) for name in tiny.DEPTHS}
concepts = {name: concept_for(model) for name, model in models.items()}
print(
    json.dumps(
        {
            name: {
                "family": host.family_of(model),
                "layers": len(concepts[name].layers),
                "blocks": sum(max(0, each) for each in (*tiny.DEPTHS[name][0], tiny.DEPTHS[name][1], *tiny.DEPTHS[name][2])),
                "said": {other: said(model, concept) for other, concept in concepts.items()},
            }
            for name, model in models.items()
        }
    )
)
