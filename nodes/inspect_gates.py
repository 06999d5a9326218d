"""Report what concepts do in a prompt, before anything is sampled."""

import itertools

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from . import host
from .charts import gate_table
from .io_types import CATEGORY

FIGHT = 0.5
"""A concept whose gate opens further than this at another concept's word takes that word over."""
NAMED = 3
"""Maximum number of other concepts' words that a sentence names, those with the widest gates first."""


class PerfusionInspect(io.ComfyNode):
    """Reports what a model's concepts do in a prompt, as a picture and as text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionInspect",
            display_name="Inspect Gates (Perfusion)",
            category=CATEGORY,
            description="Shows whether concepts work in a prompt, before anything is sampled: how far each concept's gate opens "
            "at each word, whether a trigger word is missing, whether concepts compete for a word, and how much they change the "
            "layers.",
            search_aliases=["perfusion", "debug", "is it working", "gate", "check"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that goes into the sampler."),
                io.Conditioning.Input("positive", tooltip="The prompt that goes into the sampler."),
            ],
            outputs=[
                io.Image.Output(display_name="gates", tooltip="Each concept's gate at each word: 0 is closed, 1 is open."),
                io.String.Output(display_name="report", tooltip="The same findings in words."),
            ],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, positive: list) -> io.NodeOutput:
        """Measure the gates, and report them."""
        found = host.gate_report(model, positive)
        text = "\n".join(report(found))
        picture = gate_table([row for prompt in found.prompts for row in rows_of(prompt)], found.triggers)
        return io.NodeOutput(picture, text, ui=ui.PreviewImage(picture, cls=cls).as_dict() | {"text": (text,)})


def rows_of(prompt: host.PromptRecord) -> list[tuple[str, list[float]]]:
    """Return a prompt's words with each concept's gate, in the order of `GateReport.triggers`.

    In each section of the prompt, all tokens from the end token on share one row, with their widest gate.
    """
    gates = (
        torch.stack([prompt.gates[trigger] for trigger in prompt.gates], 1) if prompt.gates else torch.zeros(len(prompt.words), 0)
    )
    rows: list[tuple[str, list[float]]] = []
    for word, places in itertools.groupby(range(len(prompt.words)), lambda n: prompt.words[n]):
        some = list(places)
        if word == host.END:
            rows.append(("after the words", gates[some].amax(0).tolist()))
        else:
            rows += [(word, gates[n].tolist()) for n in some]
    return rows


def report(found: host.GateReport) -> list[str]:
    """Return the findings as sentences."""
    lines = [
        f"{trigger} is applied but does not appear in the prompt: add it, and encode the prompt with the CLIP from Apply Concept."
        for trigger in found.missing
    ]
    for prompt in found.prompts:
        lines += gate_sentences(prompt) + conflict_sentences(prompt)
    asked = [layer for layer in found.layers if layer in found.changes.values]
    if len(asked) < len(found.layers):
        lines.append(f"Another patch overrides the edit in {len(found.layers) - len(asked)} of {len(found.layers)} layers.")
    if asked:
        keys, values = (sum(shares.values()) / len(asked) for shares in (found.changes.keys, found.changes.values))
        lines.append(f"In {len(asked)} layers the edit changes keys by {100 * keys:.1f}% and values by {100 * values:.1f}%.")
    if found.patched:
        lines.append(f"LoRAs change {found.patched} of the edited projections; the edit is added to their result.")
    if found.replaced:
        lines.append(
            f"Another patch computes the attention of {found.replaced} layers: regions and Keep Layout have no effect there."
        )
    return lines


def gate_sentences(prompt: host.PromptRecord) -> list[str]:
    """Return a sentence for each named concept on how far its gate opens at its own word and elsewhere."""
    lines = []
    for trigger, gates in prompt.gates.items():
        own = places(prompt, trigger)
        if own.any():
            rest = float(gates[~own].max()) if not own.all() else 0.0
            lines.append(
                f"{trigger}: its gate opens to {float(gates[own].max()):.2f} at its word, and to at most {rest:.2f} elsewhere."
            )
    return lines


def conflict_sentences(prompt: host.PromptRecord) -> list[str]:
    """Return a sentence for each concept whose gate opens at other concepts' words."""
    lines = []
    for trigger, gates in prompt.gates.items():
        widest = {other: float(gates[there].max()) for other in prompt.gates if (there := places(prompt, other)).any()}
        taken = [other for other, gate in widest.items() if other != trigger and gate > FIGHT]
        if not taken:
            continue
        taken.sort(key=lambda other: (-widest[other], other))
        told = ", ".join(f"{other} ({widest[other]:.2f})" for other in taken[:NAMED])
        if len(taken) > NAMED:
            told += f" and {len(taken) - NAMED} more"
        fight = "the two compete for it" if len(taken) == 1 else "it competes with their concepts for these words"
        lines.append(f"The gate of {trigger} also opens at {told}: {fight}; raise the bias of {trigger}.")
    return lines


def places(prompt: host.PromptRecord, word: str) -> torch.Tensor:
    """Return the tokens of a prompt that belong to a word, bool [N]."""
    return torch.tensor([each == word for each in prompt.words])


NODES = [PerfusionInspect]
