"""Find the bias that suits a concept and a prompt, without a user judging pictures."""

import logging
import math

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ..perfusion_core import PerfusionError
from ..perfusion_core.concept import Concept
from ..perfusion_core.gated_edit import MODES, STATIC
from ..perfusion_core.judgement import CONTEXTS, MIN_ADHERENCE, lowest_adequate_bias
from ..perfusion_core.prompts import has_trigger, replace_triggers
from ..perfusion_core.stack import Stack
from .charts import gate_table
from .io_types import CATEGORY, ConceptType, size_input
from .prompt_adherence import PromptAdherence

log = logging.getLogger("perfusion")

BIASES = tuple(round(0.1 * i, 1) for i in range(11))


class PerfusionAutoBias(io.ComfyNode):
    """Sets a concept to the lowest bias at which the prompt is still followed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionAutoBias",
            display_name="Find Bias (Perfusion)",
            category=CATEGORY,
            description="Finds the bias for a concept: the lowest one at which the model still follows the prompt, since the "
            "concept shows most at a low bias. It compares what the model predicts from noise when given the concept's word with "
            "what it predicts when given the plain word. This costs about as much as generating a few images.",
            search_aliases=["perfusion", "bias", "auto", "tune", "find bias"],
            inputs=[
                io.Model.Input("model", tooltip="The model that you connect to Apply Concept."),
                io.Clip.Input("clip", tooltip="Its text encoder: the one that you connect to Apply Concept."),
                ConceptType.Input("concept", tooltip="A concept; if several are combined, each gets its own bias."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="The prompt to find the bias for, with the trigger word. Empty: prompts of various kinds.",
                ),
                io.Float.Input(
                    "followed",
                    default=MIN_ADHERENCE,
                    min=0.0,
                    max=0.99,
                    step=0.05,
                    tooltip="How closely the prompt must be followed: 1 means as closely as with the plain word, 0 not at all. "
                    "Lower: more of the concept.",
                ),
                size_input(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    advanced=True,
                    tooltip="Seed of the noise.",
                ),
                io.Combo.Input(
                    "edit_mode",
                    options=[mode for mode in MODES if mode != STATIC],
                    default=MODES[0],
                    advanced=True,
                    tooltip="As in Apply Concept.",
                ),
            ],
            outputs=[
                ConceptType.Output(display_name="concept", tooltip="The concept with the bias that was found, for Apply Concept."),
                io.Float.Output(display_name="bias", tooltip="The bias; if several concepts are combined, that of the first."),
                io.Image.Output(display_name="chart", tooltip="How closely the prompt is followed at each bias."),
            ],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, clip: CLIP, concept: Stack, prompt: str, followed: float, size: int, seed: int, edit_mode: str
    ) -> io.NodeOutput:
        """Find the bias of each concept separately."""
        if not concept:
            raise PerfusionError("There is no concept to find a bias for; switch one on in Load Concepts.")
        found, charts = [], {}
        bar = ProgressBar(len(concept) * (1 + len(BIASES)))
        for one in concept:
            asking = PromptAdherence(model, clip, one.superclass, size, seed, scored_prompts(one, concept, prompt))
            bar.update(1)
            scores = []
            for score in asking.scores(one, BIASES, edit_mode):
                if math.isnan(score):
                    raise PerfusionError(
                        f"What the model predicts with {one.trigger} is not a number, so no bias can be found; load the model in a "
                        "higher precision, or train the concept again with lower learning rates."
                    )
                scores.append(score)
                bar.update(1)
            bias = round(lowest_adequate_bias(BIASES, scores, followed), 3)
            if scores[-1] < followed:
                log.warning(
                    "With %s, no bias reaches %g: at a bias of %g, the prompt is followed to %.2f. Lower followed, or train the "
                    "concept for fewer steps.",
                    one.trigger,
                    followed,
                    BIASES[-1],
                    scores[-1],
                )
            found.append(one.with_settings(bias=bias))
            charts[f"{one.trigger}: {bias:g}"] = scores
        rows = [(f"bias {bias:g}", [max(0.0, scores[i]) for scores in charts.values()]) for i, bias in enumerate(BIASES)]
        chart = gate_table(rows, list(charts))
        return io.NodeOutput(tuple(found), found[0].bias, chart, ui=ui.PreviewImage(chart, cls=cls))


def scored_prompts(one: Concept, stack: Stack, prompt: str) -> list[str]:
    """Return the prompts a concept is scored on, with {} in its place and the superclasses in place of the other concepts.

    Raises:
        PerfusionError: if the prompt does not name the concept.
    """
    if not prompt.strip():
        return list(CONTEXTS)
    if not has_trigger(prompt, one.trigger):
        raise PerfusionError(f"The prompt does not contain {one.trigger}; add it, or leave the prompt empty.")
    words = {each.trigger: "{}" if each is one else each.superclass for each in stack}
    return [replace_triggers(prompt.strip().replace("{", "").replace("}", ""), words)]


NODES = [PerfusionAutoBias]
