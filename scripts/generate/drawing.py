"""A workflow as the page would save it, from a few lines that say what it holds; the way back is `workflow.py`."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator

from scripts.harness.workflow import WIDGETS

AUTOGROW = "COMFY_AUTOGROW_V3"
GAP = 50
LINE = 26


class Node:
    """A node on the drawing; `node[n]` is its output number n."""

    def __init__(self, key: int) -> None:
        self.key = key

    def __getitem__(self, output: int) -> tuple[int, int]:
        return self.key, output


class Drawing:
    """A workflow under construction: nodes stand in columns, each below the one before."""

    def __init__(self, name: str, object_info: dict, change: Callable[[str, dict], dict] | None = None) -> None:
        """`change` is asked for other values of widgets: it gets each node's type and the values that were given."""
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
        """Add a node whose left edge is at `left`, below the others there, or at `top`.

        Inputs are values of widgets or outputs of other nodes; `a__b` stands for the grown input `a.b`.
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

    def note(self, title: str, text: str, left: int, wide: int = 420, high: int = 240, top: int | None = None) -> None:
        """Add a note, in Markdown; the page takes every line break for one, so lines of a paragraph are joined."""
        text = re.sub(r"(?<!\n)\n(?!\n|[-#*|]|\d\.)", " ", text.strip())
        node = self._place(len(self.nodes) + 1, "MarkdownNote", left, top, wide, high)
        node |= {"title": title, "inputs": [], "outputs": [], "properties": {}, "widgets_values": [text]}
        node |= {"color": "#432", "bgcolor": "#000"}

    def workflow(self) -> dict:
        """All of it as the page would save it."""
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
    """A node's inputs: name, type, options, and whether it may be left open. Grown ones come as many as are given, and one."""
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
                # Lists of choices come as a list in place of a type.
                choices = {"options": kind} if isinstance(kind, list) else {}
                yield name, "COMBO" if choices else kind, choices | options, group == "optional"


def _values(kind: str, options: dict, value: object) -> list:
    """The values that a widget puts in a saved workflow: its own, and those of the little widgets behind it."""
    if value is None:
        value = options.get("default", (options.get("options") or [""])[0] if kind == "COMBO" else "")
    return [value] + ["fixed"] * bool(options.get("control_after_generate")) + ["image"] * bool(options.get("image_upload"))
