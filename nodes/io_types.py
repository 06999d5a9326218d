"""What flows between the pack's nodes, and inputs and outputs that several have."""

from collections.abc import Callable

from comfy_api.latest import io

from ..perfusion_core import PerfusionError

CATEGORY = "perfusion"

ConceptType = io.Custom("PERFUSION_CONCEPT")
"""A stack of concepts: a tuple of `perfusion_core.concept.Concept`."""

CovarianceType = io.Custom("PERFUSION_COVARIANCE")
"""A `perfusion_core.covariance.Covariance`."""

AttentionType = io.Custom("PERFUSION_ATTENTION")
"""A `host.Recorder`: what was seen while a watched model sampled."""


def concept_outputs(meant_for: str = "For Apply Concept, or to be set and combined first.") -> list[io.Output]:
    """Outputs of a node that brings one concept; the first one's tooltip says what it is for."""
    return [
        ConceptType.Output(display_name="concept", tooltip=meant_for),
        io.String.Output(display_name="trigger", tooltip="The word that stands for the concept in prompts."),
        io.String.Output(display_name="superclass", tooltip="The plain word that the concept is a kind of."),
    ]


def size_input() -> io.Int.Input:
    """The input `size` of nodes that draw squares of the model's own size."""
    return io.Int.Input(
        "size",
        default=512,
        min=64,
        max=2048,
        step=8,
        tooltip="Pixels a side that the model was trained for: SD1 512, SD2 768, SDXL 1024.",
    )


def verdict(check: Callable[[], object]) -> bool | str:
    """What a node's `validate_inputs` says, before anything runs: True, or the sentence that `check` raises.

    Inputs that are linked come as None there: they are known when the node runs, and checked again then.
    """
    try:
        check()
    except PerfusionError as error:
        return str(error)
    return True
