"""Types passed between the pack's nodes, and inputs and outputs that several nodes share."""

from collections.abc import Callable

from comfy_api.latest import io

from ..perfusion_core import PerfusionError

CATEGORY = "perfusion"

ConceptType = io.Custom("PERFUSION_CONCEPT")
"""A stack of concepts: a tuple of `perfusion_core.concept.Concept`."""

CovarianceType = io.Custom("PERFUSION_COVARIANCE")
"""A `perfusion_core.covariance.Covariance`."""

AttentionType = io.Custom("PERFUSION_ATTENTION")
"""A `host.Recorder`: the attention recorded while a watched model was sampled."""


def concept_outputs(
    meant_for: str = "For Apply Concept, either directly or through Concept Settings and Combine Concepts.",
) -> list[io.Output]:
    """Return the outputs of a node that provides one concept; `meant_for` is the tooltip of the concept itself."""
    return [
        ConceptType.Output(display_name="concept", tooltip=meant_for),
        io.String.Output(display_name="trigger", tooltip="The word that stands for the concept in prompts."),
        io.String.Output(display_name="superclass", tooltip="The plain word for what the concept is."),
    ]


def page_input(name: str, default: str, tooltip: str) -> io.String.Input:
    """Return an input for a text that the page's scripts write and hide."""
    return io.String.Input(name, default=default, socketless=True, extra_dict={"hidden": True}, tooltip=tooltip)


def size_input() -> io.Int.Input:
    """Return the input `size` of nodes that generate square pictures at the model's native size."""
    return io.Int.Input(
        "size",
        default=512,
        min=64,
        max=2048,
        step=8,
        tooltip="Side length, in pixels, that the model was trained at: SD1 512, SD2 768, SDXL 1024.",
    )


def validation_result(check: Callable[[], object]) -> bool | str:
    """Return the result of a node's `validate_inputs`: True, or the message of the PerfusionError that `check` raises.

    Validation runs before the graph, when linked inputs are still None; they are checked again when the node runs.
    """
    try:
        check()
    except PerfusionError as error:
        return str(error)
    return True
