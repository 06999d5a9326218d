"""Convert a workflow as saved by the page to the prompt that the page would send to the server.

A saved workflow describes the canvas: nodes with sockets, links between them, and widget values by position. A prompt is the
bare graph: each node's class and its inputs by name. This module does the page's conversion: it handles bypassed and muted
nodes, Reroute and Primitive nodes, notes, the "control after generate" value after each seed, growing inputs, and combos that
add inputs of their own (named `group.input` in both forms). It does not support subgraphs or the random choice in texts such
as `{red|blue}`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

ALWAYS, NEVER, BYPASS = 0, 2, 4
NOTES = {"Note", "MarkdownNote"}
VIRTUAL = NOTES | {"Reroute", "PrimitiveNode"}
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
WIDGETS = {"INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", DYNAMIC_COMBO, "MARKDOWN", "TEXTAREA", "COLOR"}
WIDGETS |= {"BOUNDING_BOX", "CURVE", "RANGE"}
DEFAULTS = {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False, "STRING": "", "COLOR": "#ffffff"}
CONTROLS = {"fixed", "increment", "decrement", "randomize", "increment-wrap"}


class WorkflowError(ValueError):
    """The workflow is not one that the page would save, or contains something that this module does not convert."""


class Link(NamedTuple):
    """The origin of a link: a node and the index of its output."""

    node: str
    output: int


@dataclass(frozen=True)
class Literal:
    """A constant value that a link carries from a Primitive node."""

    value: Any


class Entry(NamedTuple):
    """One position of a node's widgets_values. `sent` is False for values that the page does not send to the server."""

    name: str
    value: Any
    sent: bool


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """Convert a workflow in the page's form to a prompt in API form; WorkflowError if that is not possible."""
    graph = _Graph(workflow)
    prompt = {}
    for key, node in graph.nodes.items():
        if node["type"] in VIRTUAL or node.get("mode", ALWAYS) in (NEVER, BYPASS):
            continue
        info = _info(node, object_info)
        inputs = {}
        for entry in _entries(node, info):
            if entry.sent:
                inputs[entry.name] = {"__value__": entry.value} if isinstance(entry.value, list) else entry.value
        for socket in node.get("inputs", []):
            source = graph.source(socket, socket["type"])
            if isinstance(source, Link):
                inputs[socket["name"]] = [source.node, source.output]
            elif isinstance(source, Literal):
                inputs[socket["name"]] = source.value
        title = node.get("title") or info.get("display_name") or node["type"]
        prompt[key] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


def find_nodes(workflow: dict, node: int | str) -> list[dict]:
    """Return all nodes with this id, else with this title, else of this class; WorkflowError if there are none."""
    for matches in (
        lambda candidate: str(candidate["id"]) == str(node),
        lambda candidate: candidate.get("title") == node,
        lambda candidate: candidate["type"] == node,
    ):
        found = [candidate for candidate in workflow["nodes"] if matches(candidate)]
        if found:
            return found
    raise WorkflowError(f"no node is called {node!r}")


def find_node(workflow: dict, node: int | str) -> dict:
    """Return the only node that `find_nodes` finds; WorkflowError if there are none or several."""
    found = find_nodes(workflow, node)
    if len(found) > 1:
        raise WorkflowError(f"{len(found)} nodes are called {node!r}: {[candidate['id'] for candidate in found]}")
    return found[0]


def set_widget(workflow: dict, node: int | str, name: str, value: Any, object_info: dict) -> None:
    """Set a widget of the node with this id, title or class (see `find_node`), in place."""
    found = find_node(workflow, node)
    info = _info(found, object_info)
    entries = list(_entries(found, info))
    if name not in [entry.name for entry in entries]:
        raise WorkflowError(f"node {found['id']} ({found['type']}) has no widget {name!r}")
    saved = found.get("widgets_values") or []
    changed = {entry.name: entry.value for entry in entries} | {name: value}
    if isinstance(saved, dict):
        found["widgets_values"] = saved | {name: value}
    else:
        now = _entries(found | {"widgets_values": changed}, info)
        found["widgets_values"] = [entry.value for entry in now] + saved[len(entries) :]


class _Graph:
    """The nodes and links of a workflow, and the actual sources of its values."""

    def __init__(self, workflow: dict) -> None:
        self.nodes: dict[str, dict] = {str(node["id"]): node for node in workflow["nodes"]}
        self.links: dict[int, Link] = {}
        for link in workflow.get("links", []):
            if isinstance(link, dict):
                self.links[link["id"]] = Link(str(link["origin_id"]), link["origin_slot"])
            else:
                self.links[link[0]] = Link(str(link[1]), link[2])

    def source(self, socket: dict, kind: str, seen: frozenset[Link] = frozenset()) -> Link | Literal | None:
        """Follow an input's link back to a node that runs; `kind` is the type that the consumer expects."""
        link = self.links.get(socket.get("link"))  # type: ignore[arg-type]
        node = self.nodes.get(link.node) if link else None
        if link is None or node is None:
            return None
        if link in seen:
            raise WorkflowError(f"the links through node {link.node} run in a circle")
        seen |= {link}
        if node["type"] == "PrimitiveNode":
            values = node.get("widgets_values") or []
            return Literal(values[0]) if values else None
        if node.get("mode", ALWAYS) == NEVER:
            return None
        if node.get("mode", ALWAYS) == BYPASS:
            passed = _bypass_input(node, link.output, kind)
            return self.source(passed, kind, seen) if passed else None
        if node["type"] == "Reroute":
            return self.source(node["inputs"][0], kind, seen)
        return link


def _bypass_input(node: dict, output: int, kind: str) -> dict | None:
    """Return the input that a bypassed node passes through as this output.

    It is the input at the same index if its type fits, otherwise the first one that fits; None if there is none.
    """
    inputs = node.get("inputs", [])
    own = node["outputs"][output]["type"]
    if kind in ("*", ""):
        return inputs[output if output < len(inputs) else 0] if inputs else None
    if output < len(inputs) and _fits(inputs[output]["type"], own) and _fits(inputs[output]["type"], kind):
        return inputs[output]
    same = [socket for socket in inputs if socket["type"] == kind]
    fitting = [socket for socket in inputs if _fits(socket["type"], own) and _fits(socket["type"], kind)]
    return next(iter(same + fitting), None)


def _fits(one: Any, other: Any) -> bool:
    """Whether the page would connect these types."""
    if one in ("", "*", 0) or other in ("", "*", 0):
        return True
    return bool(set(str(one).lower().split(",")) & set(str(other).lower().split(",")))


def _info(node: dict, object_info: dict) -> dict:
    """Return the server's description of this node's class."""
    try:
        return object_info[node["type"]]
    except KeyError:
        raise WorkflowError(f"node {node['id']} is a {node['type']}, which the server does not know (or a subgraph)") from None


def _entries(node: dict, info: dict) -> Iterator[Entry]:
    """Yield the entries of a node's widgets_values, in the page's order; entries that were not saved have their defaults."""
    values = node.get("widgets_values") or []
    position = itertools.count()

    def saved(name: str, default: Any) -> Any:
        if isinstance(values, dict):
            return values.get(name, default)
        place = next(position)
        return values[place] if place < len(values) else default

    pending = deque(_specs(info["input"], info.get("input_order")))
    while pending:
        name, spec = pending.popleft()
        kind, options = _kind(spec)
        if kind not in WIDGETS or options.get("forceInput"):
            continue
        value = saved(name, _default(kind, options))
        yield Entry(name, value, sent=True)
        for control in _controls(name, kind, options):
            kept = saved(control, _control_default(control, options))
            if control == f"{name} control" and isinstance(kept, (int, float, str)) and kept not in CONTROLS | {True, False}:
                raise WorkflowError(
                    f"node {node['id']} ({node['type']}): after {name!r} the page keeps one of {sorted(CONTROLS)} in "
                    f"widgets_values, but here it is {kept!r}"
                )
            yield Entry(control, kept, sent=False)
        if kind == DYNAMIC_COMBO:
            chosen = [option["inputs"] for option in options["options"] if option["key"] == value]
            own = [(f"{name}.{inner}", spec) for inputs in chosen for inner, spec in _specs(inputs)]
            pending.extendleft(reversed(own))


def _specs(inputs: dict, order: dict | None = None) -> list[tuple[str, list]]:
    """Return a node's inputs in the page's order: required ones, then optional ones."""
    specs = []
    for group in ("required", "optional"):
        members = inputs.get(group) or {}
        names = [name for name in (order or {}).get(group, []) if name in members]
        specs += [(name, members[name]) for name in names + [name for name in members if name not in names]]
    return specs


def _kind(spec: list) -> tuple[str, dict]:
    """Return an input's type and options; a list of choices instead of a type is a combo."""
    options = spec[1] if len(spec) > 1 and spec[1] else {}
    if isinstance(spec[0], list):
        return "COMBO", options | {"options": spec[0]}
    return options.get("widgetType") or spec[0], options


def _default(kind: str, options: dict) -> Any:
    """Return the value of a new widget."""
    if "default" in options:
        return options["default"]
    choices = options.get("options") or [None]
    if kind == DYNAMIC_COMBO:
        return choices[0]["key"]
    return choices[0] if kind == "COMBO" else DEFAULTS.get(kind)


def _controls(name: str, kind: str, options: dict) -> list[str]:
    """Return the names of the values that the page keeps after this widget to control how it changes after each run."""
    by_default = kind == "INT" and name.rpartition(".")[2] in ("seed", "noise_seed")
    asked = options.get("control_after_generate")
    if not (by_default if asked is None else asked):
        return []
    return [f"{name} control", f"{name} filter"] if kind == "COMBO" else [f"{name} control"]


def _control_default(control: str, options: dict) -> str:
    """Return the value of a new control."""
    if control.endswith(" filter"):
        return ""
    asked = options.get("control_after_generate")
    return asked if isinstance(asked, str) else "randomize"
