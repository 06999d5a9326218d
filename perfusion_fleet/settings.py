"""Widgets of Train Concept as a table gives them; imported within the host."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_api.latest import io

from perfusion_fleet.inside import part

PerfusionError = part("perfusion_core").PerfusionError
PerfusionTrain = part("nodes.training.train_concept").PerfusionTrain
WORDS = ("superclass", "trigger")
"""Widgets that have columns of their own."""


def widgets() -> dict[str, io.WidgetInput]:
    """The node's widgets by name, in its order, but for those of the words."""
    inputs = PerfusionTrain.define_schema().inputs
    return {each.id: each for each in inputs if isinstance(each, io.WidgetInput) and each.id not in WORDS}


def chosen(given: Mapping[str, object]) -> dict[str, object]:
    """The value of every widget: what is given, and else as the node comes.

    Raises:
        PerfusionError: something is given that is no widget, or a value that the widget does not take.
    """
    known = widgets()
    for name in given:
        if name not in known:
            raise PerfusionError(f"{name} is no setting of Train Concept; it has {', '.join(known)}.")
    return {name: value_of(each, given[name]) if name in given else each.default for name, each in known.items()}


def value_of(widget: io.WidgetInput, given: object) -> object:
    """What a widget takes of a value that may be a text; raises PerfusionError where it takes none."""
    if isinstance(widget, io.Combo.Input):
        value, wanted = str(given), f"one of {', '.join(widget.options)}"
        good = value in widget.options
    elif isinstance(widget, io.Boolean.Input):
        value, wanted = str(given).lower() == "true", "true or false"
        good = str(given).lower() in ("true", "false")
    elif isinstance(widget, io.Int.Input | io.Float.Input):
        kind, named = (int, "whole number") if isinstance(widget, io.Int.Input) else (float, "number")
        value, wanted = number(kind, given), f"a {named} from {widget.min:g} to {widget.max:g}"
        good = value is not None and widget.min <= value <= widget.max
    else:
        value, wanted, good = str(given), "a text", True
    if not good:
        raise PerfusionError(f"{widget.id} should be {wanted}; {str(given)[:80]!r} came.")
    return value


def number(kind: type[int] | type[float], given: object) -> int | float | None:
    """A number of this kind, or None: 2.5 and true are no whole numbers."""
    try:
        return None if isinstance(given, bool) or (kind is int and isinstance(given, float)) else kind(given)
    except (TypeError, ValueError):
        return None
