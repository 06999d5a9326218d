"""A report on how a MODEL's concepts respond to a prompt, made before sampling from one step on tiny latents."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import comfy.sample
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....perfusion_core import PerfusionError
from ....perfusion_core.schedule import ALWAYS
from ..model.loading import load, reader
from ..sampling import empty_latents
from ..text.prompt_ids import model_context
from .attention_recorder import PromptRecord
from .patched_model import get_perfusion_state, model_with
from .sampling_run import named_by, new_prompt_record

PLACEMENT = frozenset(
    "area area_type strength mask mask_strength set_area_to_bounds control control_apply_to_uncond gligen start_percent "
    "end_percent".split()
)
"""Entries of a conditioning that say where and when it applies; they do not matter for what its words do."""


@dataclass
class ChangeMeter:
    """A `Comparer` that measures how much the edit changes each projection.

    Attributes:
        keys: layer -> relative change of its keys, ‖edited - plain‖ / ‖plain‖.
        values: layer -> the same for its values.
    """

    keys: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)

    def compare(self, layer: str, keys: bool, plain: Sequence[Tensor], edited: Sequence[Tensor]) -> None:
        """See `Comparer.compare`; of several sets of edits, the one with the largest change counts."""
        both = zip(plain, edited, strict=True)
        shares = [float((after.float() - before.float()).norm() / before.float().norm().clamp(min=1e-12)) for before, after in both]
        (self.keys if keys else self.values)[layer] = max(shares)


@dataclass(frozen=True)
class GateReport:
    """How a MODEL's concepts respond to a conditioning.

    Attributes:
        triggers: trigger words of all concepts that the model carries.
        prompts: the words and gates of each prompt of the conditioning.
        missing: trigger words that no prompt contains.
        layers: all cross-attention layers.
        changes: the layers in which the edit was computed, and how much it changed their keys and values.
        patched: number of the layers' key and value projections that a LoRA or another weight patch changes.
        replaced: number of layers whose attention another patch replaces.
    """

    triggers: list[str]
    prompts: list[PromptRecord]
    missing: list[str]
    layers: tuple[str, ...]
    changes: ChangeMeter
    patched: int
    replaced: int


def gate_report(model: ModelPatcher, conditioning: list) -> GateReport:
    """Return how a MODEL's concepts respond to a conditioning.

    Raises:
        PerfusionError: the model carries no concepts.
    """
    applied = get_perfusion_state(model)
    if not applied.stack:
        raise PerfusionError("This model has no concepts; connect the model from Apply Concept.")
    changes = ChangeMeter()
    # The one step that is sampled need not be in the part of the run in which a concept acts.
    stack = tuple(concept.with_settings(schedule=ALWAYS) for concept in applied.stack)
    mine = model_with(model, replace(applied, stack=stack, comparer=changes, recorder=None, layout=None))
    bare = [[cond, {k: v for k, v in rest.items() if k not in PLACEMENT}] for cond, rest in conditioning]
    latents = empty_latents(model, 1, applied.family.least, applied.family.least)
    noise = comfy.sample.prepare_noise(latents, 0)
    comfy.sample.sample(mine, noise, 1, 1.0, "euler", "normal", bare, [], latents, disable_pbar=True, seed=0)
    load(model)
    read = reader(model.model, applied.family, model.load_device)
    encodings = [model_context(model, cond, more, applied.triggers) for cond, more in conditioning]
    said = {trigger for encoding in encodings for trigger in named_by(encoding, applied, read)}
    options = model.model_options.get("transformer_options", {})
    ends = tuple(f"{layer}.{which}.weight" for layer in applied.layers for which in (applied.family.keys, applied.family.values))
    return GateReport(
        triggers=[concept.trigger for concept in applied.stack],
        prompts=[new_prompt_record(encoding, applied, read) for encoding in encodings],
        missing=[concept.trigger for concept in applied.stack if concept.trigger not in said],
        layers=applied.layers,
        changes=changes,
        patched=sum(name.endswith(ends) for name in model.patches),
        replaced=len(options.get("patches_replace", {}).get("attn2", {})),
    )
