"""Validation of a table's values for the widgets of Train Concept and its options. Import only inside the host (see `inside`)."""

from __future__ import annotations

from collections.abc import Mapping

from comfy_api.latest import io

from perfusion_fleet.inside import part

PerfusionError = part("perfusion_core").PerfusionError
PerfusionTrain = part("nodes.training.train_concept").PerfusionTrain
Options = part("nodes.training.options")
WORDS = ("superclass", "trigger")
"""Widgets whose values are fields of `Job` instead of settings."""
ELSEWHERE = ("captions", "preset")
"""Widgets of Training Options that are fields of `Job`, or matter only to the page."""


def widgets() -> dict[str, io.WidgetInput]:
    """Return the widgets of Train Concept by name, in its order, except those in WORDS."""
    return widgets_of(PerfusionTrain, WORDS)


def further_widgets() -> dict[str, io.WidgetInput]:
    """Return the widgets of Training Options likewise, except those in ELSEWHERE."""
    return widgets_of(Options.PerfusionTrainingOptions, ELSEWHERE)


def widgets_of(node: type[io.ComfyNode], without: tuple[str, ...]) -> dict[str, io.WidgetInput]:
    """Return a node's widgets by name, in the node's order, without some."""
    return {each.id: each for each in node.define_schema().inputs if isinstance(each, io.WidgetInput) and each.id not in without}


def chosen(given: Mapping[str, object]) -> dict[str, object]:
    """Return the value of every widget of both nodes: the given value, or else the node's default.

    Raises:
        PerfusionError: a given name is not a widget, or the widget does not accept its value.
    """
    known = widgets() | further_widgets()
    for name in given:
        if name not in known:
            raise PerfusionError(f"{name} is not a setting of Train Concept; choose one of {', '.join(known)}.")
    return {name: value_of(each, given[name]) if name in given else each.default for name, each in known.items()}


def value_of(widget: io.WidgetInput, given: object) -> object:
    """Return a value, which may be text, in the widget's type; raise PerfusionError if the widget does not accept it."""
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
        value, wanted, good = str(given), "text", True
    if not good:
        raise PerfusionError(f"{widget.id} should be {wanted}, not {str(given)[:80]!r}.")
    return value


def number(kind: type[int] | type[float], given: object) -> int | float | None:
    """Return the value as a number of this kind, or None if it is not one: for int, a float is not; a bool never is."""
    try:
        return None if isinstance(given, bool) or (kind is int and isinstance(given, float)) else kind(given)
    except (TypeError, ValueError, OverflowError):  # OverflowError: float() of an integer with hundreds of digits
        return None
