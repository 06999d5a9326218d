"""Layouts of real models, whole, in the real host: run by test_families.py in the host's own interpreter.

`python -m tests.inside_layouts COMFYUI` prints as JSON what was found of SDXL and its kin, of transformers, and of models
with joint attention.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from perfusion_fleet import inside

inside.enter_with_pack(Path(sys.argv[1]))

import comfy.model_base  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402

from tests import tiny  # noqa: E402

host = inside.part("nodes.host")
PerfusionError = inside.part("perfusion_core").PerfusionError
Concept = inside.part("perfusion_core.concept").Concept


def said(model: object, concept: object) -> str:
    """What is said to a concept; nothing if it fits."""
    return refused(lambda: host.check_fit(concept, model))


def refused(asked: Callable[[], object]) -> str:
    """What is said when something is refused; nothing if it is not."""
    try:
        asked()
    except PerfusionError as error:
        return str(error)
    return ""


def concept_for(model: object) -> object:
    """A concept of zeros that fits a model."""
    wide = torch.ones(host.width_of(model))
    outputs = {layer: torch.zeros(width) for layer, width in host.layers_of(model).items()}
    return Concept("<it>", "teddy", host.family_of(model), {"clip_l": wide[None]}, wide, wide, wide, outputs)


def fine_layers(model: object) -> list[str]:
    """The blocks whose layers have the highest resolution, one entry for each layer."""
    return sorted(".".join(layer.split(".")[:2]) for layer in host.fine_layers_of(model))


def layouts(models: dict[str, object]) -> dict:
    """Of each layout, its family, its layers, the bytes of a concept's file and what it says to concepts of all."""
    concepts = {name: concept_for(model) for name, model in models.items()}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            path = Path(folder) / "it.safetensors"
            concepts[name].save(path)
            found[name] = {
                "family": host.family_of(model),
                "layers": len(concepts[name].layers),
                "width": host.width_of(model),
                "bytes": path.stat().st_size,
                "said": {other: said(model, concept) for other, concept in concepts.items()},
            }
    return found


models = {name: tiny.weightless(tiny.whole(name)) for name in tiny.DEPTHS}
unets = layouts(models)
models["SD15"] = tiny.weightless(comfy.supported_models.SD15(dict(tiny.SD15)), comfy.model_base.BaseModel)
transformers = tiny.transformers()
for name, each in unets.items():
    each["blocks"] = sum(max(0, depth) for depth in (*tiny.DEPTHS[name][0], tiny.DEPTHS[name][1], *tiny.DEPTHS[name][2]))
print(
    json.dumps(
        {
            "unets": unets,
            "transformers": layouts(transformers),
            "fine": {name: fine_layers(model) for name, model in models.items()},
            "not fine": [refused(lambda model=model: host.fine_layers_of(model)) for model in transformers.values()],
            "VACE": refused(lambda: host.check_trainable(tiny.vace(), None)),
            "joint": {name: said(model, concept_for(tiny.weightless(tiny.whole("SDXL")))) for name, model in tiny.joint().items()},
        }
    )
)
