"""Build workflows in the form in which the page saves them, from a few lines of code; `workflow.py` converts them to prompts."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator

from scripts.harness.workflow import WIDGETS

AUTOGROW = "COMFY_AUTOGROW_V3"
GAP = 50
LINE = 26


class Node:
    """A node of a drawing; `node[n]` is its output number n."""

    def __init__(self, key: int) -> None:
        self.key = key

    def __getitem__(self, output: int) -> tuple[int, int]:
        return self.key, output


class Drawing:
    """A workflow under construction. Nodes are placed in columns, each below the previous one."""

    def __init__(self, name: str, object_info: dict, change: Callable[[str, dict], dict] | None = None) -> None:
        """`change` overrides widget values: called with each node's type and its given values, it returns those to replace."""
        self.name, self.info, self.change = name, object_info, change
        self.nodes: list[dict] = []
        self.links: list[list] = []
        self.bottoms: dict[int, int] = {}

    def add(
        self,
        class_type: str,
        left: int,
        /,
        wide: int = 320,
        high: int = 0,
        title: str = "",
        top: int | None = None,
        **inputs: object,
    ) -> Node:
        """Add a node whose left edge is at `left`, below the others of that column, or at `top`.

        `inputs` are widget values or outputs of other nodes; the keyword `a__b` sets the growing input `a.b`. Raises ValueError for
        inputs that the node does not have.
        """
        info = self.info[class_type]
        given = {name.replace("__", "."): value for name, value in inputs.items()}
        if self.change:
            given |= self.change(class_type, {k: v for k, v in given.items() if not isinstance(v, tuple)})
        key = len(self.nodes) + 1
        sockets, widgets = [], []
        for name, kind, options, optional in specs(info, given):
            value = given.get(name)
            if kind in WIDGETS and not options.get("forceInput"):
                if isinstance(value, tuple):
                    sockets.append({"name": name, "type": kind, "widget": {"name": name}, "link": None})
                    value = None
                widgets += _values(kind, options, value)
            else:
                sockets.append({"name": name, "type": kind, "link": None} | ({"shape": 7} if optional else {}))
        unknown = set(given) - {socket["name"] for socket in sockets} - {name for name, *_ in specs(info, given)}
        if unknown:
            raise ValueError(f"{class_type} has no input {', '.join(sorted(unknown))}")
        outputs = [{"name": n, "type": t, "links": []} for n, t in zip(info["output_name"], info["output"], strict=True)]
        node = self._place(key, class_type, left, top, wide, high or LINE * (2 + len(widgets) + max(len(sockets), len(outputs))))
        node |= {"inputs": sockets, "outputs": outputs, "properties": {"Node name for S&R": class_type}, "widgets_values": widgets}
        node |= {"title": title} if title else {}
        for name, value in given.items():
            if isinstance(value, tuple):
                self._link(value, node, name)
        return Node(key)

    def note(self, title: str, text: str, left: int, wide: int = 370, high: int = 270, top: int | None = None) -> None:
        """Add a note in Markdown. Lines of a paragraph are joined, because the page renders every line break."""
        text = re.sub(r"(?<!\n)\n(?!\n|[-#*|]|\d\.)", " ", text.strip())
        node = self._place(len(self.nodes) + 1, "MarkdownNote", left, top, wide, high)
        node |= {"title": title, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [text]}
        node |= {"color": "#432", "bgcolor": "#000"}

    def workflow(self) -> dict:
        """Return the complete workflow as the page would save it."""
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"perfusion/{self.name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(self.links),
            "nodes": self.nodes,
            "links": self.links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def _place(self, key: int, class_type: str, left: int, top: int | None, wide: int, high: int) -> dict:
        top = self.bottoms.get(left, 0) if top is None else top
        self.bottoms[left] = top + high + GAP
        node = {"id": key, "type": class_type, "pos": [left, top], "size": [wide, high], "flags": {}, "order": key - 1, "mode": 0}
        self.nodes.append(node)
        return node

    def _link(self, source: tuple[int, int], node: dict, name: str) -> None:
        slot = [socket["name"] for socket in node["inputs"]].index(name)
        output = self.nodes[source[0] - 1]["outputs"][source[1]]
        key = len(self.links) + 1
        self.links.append([key, source[0], source[1], node["id"], slot, output["type"]])
        node["inputs"][slot]["link"] = key
        output["links"].append(key)


def specs(info: dict, given: dict) -> Iterator[tuple[str, str, dict, bool]]:
    """Yield the inputs of a node: name, type, options, and whether the input is optional.

    Of a growing input, it yields as many as are given plus one empty one.
    """
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, options = [*info["input"][group][name], {}][:2]
            if kind == AUTOGROW:
                template = options["template"]
                ((_, (grown, *_)),) = next(iter(template["input"].values())).items()
                least = template.get("min", 1)
                count = max(sum(key.startswith(f"{name}.") for key in given) + 1, least)
                yield from ((f"{name}.{template['prefix']}{i}", grown, {}, i >= least) for i in range(count))
            else:
                # A combo may have a list of choices instead of a type.
                choices = {"options": kind} if isinstance(kind, list) else {}
                yield name, "COMBO" if choices else kind, choices | options, group == "optional"


def _values(kind: str, options: dict, value: object) -> list:
    """Return the values that a widget contributes to a saved workflow: its own, and those of the auxiliary widgets after it."""
    if value is None:
        value = options.get("default", (options.get("options") or [""])[0] if kind == "COMBO" else "")
    return [value] + ["fixed"] * bool(options.get("control_after_generate")) + ["image"] * bool(options.get("image_upload"))
