"""Load several concepts in one node."""

import json
from dataclasses import dataclass

from comfy_api.latest import io

from ..perfusion_core import PerfusionError
from ..perfusion_core.concept import Concept
from ..perfusion_core.stack import Stack, combine
from .concepts import path_of
from .folders import version_of
from .io_types import CATEGORY, ConceptType, page_input, validation_result

MOST = 64
"""Maximum number of rows."""


@dataclass(frozen=True)
class Row:
    """A row of the node: a concept's file, whether it is used, and its settings; None stands for the concept's own."""

    name: str
    on: bool = True
    strength: float | None = None
    bias: float | None = None

    def concept(self) -> Concept:
        """Load the concept and apply the settings; raises PerfusionError if the file or a setting is unusable."""
        chosen = {"strength": self.strength, "bias": self.bias}
        return Concept.load(path_of(self.name)).with_settings(**{name: n for name, n in chosen.items() if n is not None})


def rows_of(text: str) -> list[Row]:
    """Parse the node's rows; raises PerfusionError if they are not a JSON list of objects with the attributes of `Row`."""
    expected = PerfusionError(
        f"Load Concepts needs a JSON list of at most {MOST} rows, such as "
        '[{"name": "teddy.safetensors", "on": true, "strength": null, "bias": null}], '
        f"but got {text[:80]!r}; add the concepts with the buttons on the node."
    )
    try:
        given = json.loads(text or "[]")
        rows = [Row(**each) for each in given]
    except (ValueError, TypeError, RecursionError):
        raise expected from None
    numbers = [each for row in rows for each in ((row.strength, 0, 1), (row.bias, -1, 2)) if each[0] is not None]
    good = isinstance(given, list) and len(rows) <= MOST and all(isinstance(row.name, str) for row in rows)
    if not good or not all(isinstance(n, int | float) and low <= n <= high for n, low, high in numbers):
        raise expected
    return rows


def stack_of(text: str) -> Stack:
    """Load the concepts of all rows that are on; raises PerfusionError if one is unusable or two do not fit together."""
    return combine(*((row.concept(),) for row in rows_of(text) if row.on))


class PerfusionLoadConcepts(io.ComfyNode):
    """Loads several concepts from files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionLoadConcepts",
            display_name="Load Concepts (Perfusion)",
            category=CATEGORY,
            description="Loads several concepts, each with its own switch, strength and bias. The same as several Load Concept "
            "nodes joined by Combine Concepts.",
            search_aliases=["perfusion", "stack concepts", "lora stack", "load concepts"],
            inputs=[page_input("concepts", "[]", "The rows as a JSON list. The buttons on the node fill it in; programs can too.")],
            outputs=[ConceptType.Output(display_name="concept", tooltip="All concepts that are switched on, for Apply Concept.")],
        )

    @classmethod
    def validate_inputs(cls, concepts: str) -> bool | str:
        """Reject unusable rows and files before the graph runs."""
        return validation_result(lambda: stack_of(concepts))

    @classmethod
    def fingerprint_inputs(cls, concepts: str) -> str:
        """Return the rows and the files' versions, so that a changed file is loaded again."""
        try:
            return concepts + "".join(version_of(row.name) for row in rows_of(concepts))
        except PerfusionError:
            return concepts

    @classmethod
    def execute(cls, concepts: str) -> io.NodeOutput:
        """Load the concepts."""
        return io.NodeOutput(stack_of(concepts))


NODES = [PerfusionLoadConcepts]
