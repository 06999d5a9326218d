"""Write `subgraphs/*.json`: `python -m scripts.generate.make_subgraphs` in the set-up's environment.

The host lists them as blueprints: subgraphs of several nodes, which the search box finds by the file's name. One function here
builds each of them; types, defaults and the order of widgets come from a running server.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from scripts.generate.drawing import LINE, Drawing, Node, specs
from scripts.generate.make_workflows import SD15
from scripts.harness.server import Server
from scripts.harness.workflow import WIDGETS
from scripts.setup import bootstrap, steps

SUBGRAPHS = bootstrap.ROOT / "subgraphs"
CATEGORY = "Perfusion"
INPUTS, OUTPUTS = -10, -20
"""Ids that the host gives to the input node and the output node of a subgraph."""
PREVIEW = "$$canvas-image-preview"
"""The host's name for the preview image that a node shows."""
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
WIDE = 320


def main() -> int:
    """Write all blueprints."""
    with Server(bootstrap.locate()) as server:
        info = server.object_info()
    SUBGRAPHS.mkdir(exist_ok=True)
    for name in DRAWN:
        (SUBGRAPHS / f"{name}.json").write_text(text(name, info), encoding="utf-8")
        steps.say(f"  {name}")
    return 0


def text(name: str, object_info: dict) -> str:
    """Return the content of this blueprint's file."""
    sheet = Blueprint(name, object_info)
    DRAWN[name](sheet)
    return json.dumps(sheet.workflow(), indent=1, ensure_ascii=False) + "\n"


def teach(sheet: Blueprint) -> None:
    """Train a concept from images and masks and save it, with the settings for SD1.5."""
    sheet.description = "Trains a concept from a few pictures and their masks, and saves it. The numbers are for SD1.5."
    sheet.aliases = ["perfusion", "train concept", "personalize", "dreambooth", "textual inversion"]
    links = {name: sheet.enter(name) for name in ("model", "clip", "vae", "images", "masks")}
    numbers = SD15["PerfusionTrain"]
    widgets = {name: sheet.enter(name, numbers.get(name)) for name in ("superclass", "trigger", "steps", "size")}
    train = sheet.add("PerfusionTrain", 0, wide=380, **numbers | links | widgets)
    sheet.show(train)
    sheet.add("PerfusionSaveConcept", 430, concept=train[0], filename_prefix=sheet.enter("filename_prefix"))
    for i, name in enumerate(sheet.info["PerfusionTrain"]["output_name"]):
        sheet.leave(name, train[i])


def two_places(sheet: Blueprint) -> None:
    """Apply two concepts to a model, each with its own settings and region."""
    sheet.description = "Puts two concepts into one image, each in its own place. The numbers are for SD1.5."
    sheet.aliases = ["perfusion", "regions", "combine concepts", "apply concept"]
    model, clip = sheet.enter("model"), sheet.enter("clip")
    numbers, chosen = SD15["PerfusionConceptSettings"], {}
    for i, which in enumerate(("first", "second")):
        links = {name: sheet.enter(f"{which}_{name}") for name in ("concept", "region")}
        widgets = {name: sheet.enter(f"{which}_{name}", numbers.get(name)) for name in ("bias", "temperature", "strength")}
        settings = sheet.add("PerfusionConceptSettings", 0, title=f"The {which} concept", **links, **widgets)
        chosen[f"concepts__concept{i}"] = settings[0]
    both = sheet.add("PerfusionCombineConcepts", 370, **chosen)
    applied = sheet.add("PerfusionApply", 740, model=model, clip=clip, concept=both[0])
    sheet.leave("model", applied[0])
    sheet.leave("clip", applied[1])


@dataclass
class Slot:
    """An input or an output of a blueprint, and the link inside that begins or ends at it.

    `value` is a widget's initial value; None for the node's own default.
    """

    name: str
    value: object = None
    type: str = ""
    link: int = 0
    widget: bool = False


class Blueprint(Drawing):
    """A subgraph under construction: `enter` adds its inputs and widgets, `leave` its outputs."""

    def __init__(self, name: str, object_info: dict) -> None:
        super().__init__(name, object_info)
        self.inputs: list[Slot] = []
        self.outputs: list[Slot] = []
        self.shown: list[int] = []
        self.description = ""
        self.aliases: list[str] = []

    def enter(self, name: str, value: object = None) -> Slot:
        """Add an input of the blueprint, for an input or a widget of one node inside."""
        self.inputs.append(Slot(name, value))
        return self.inputs[-1]

    def leave(self, name: str, source: tuple[int, int]) -> None:
        """Add an output of the blueprint, from an output of a node inside."""
        output, key = self.nodes[source[0] - 1]["outputs"][source[1]], len(self.links) + 1
        self.links.append([key, *source, OUTPUTS, len(self.outputs), output["type"]])
        output["links"].append(key)
        self.outputs.append(Slot(name, type=output["type"], link=key))

    def show(self, node: Node) -> None:
        """Expose a node's preview image on the blueprint; the page shows it only with Nodes 2.0."""
        self.shown.append(node.key)

    def add(self, class_type: str, left: int, /, **inputs: object) -> Node:
        """Add a node as `Drawing.add` does; inputs may also be slots of the blueprint."""
        entering = {name: value for name, value in inputs.items() if isinstance(value, Slot)}
        node = super().add(class_type, left, **inputs | {name: slot.value for name, slot in entering.items()})
        sockets = self.nodes[-1]["inputs"]
        # A link refers to an input by its index, and the page also counts widgets, after the other inputs.
        for name, kind, options, _ in specs(self.info[class_type], inputs):
            if kind in WIDGETS and not options.get("forceInput"):
                sockets.append({"name": name, "type": kind, "widget": {"name": name}, "link": None})
        for name, slot in entering.items():
            at = [socket["name"] for socket in sockets].index(name)
            slot.type, slot.link, slot.widget = sockets[at]["type"], len(self.links) + 1, "widget" in sockets[at]
            self.links.append([slot.link, INPUTS, self.inputs.index(slot), node.key, at, slot.type])
            sockets[at]["link"] = slot.link
        return node

    def workflow(self) -> dict:
        """Return the blueprint as the page would publish it: a workflow with one node, and the definition of its subgraph."""
        frame, inside = self._frame(), self._inside()
        whole = super().workflow() | {"last_node_id": frame["id"], "last_link_id": 0, "nodes": [frame], "links": []}
        return whole | {"definitions": {"subgraphs": [inside]}, "extra": {"BlueprintSearchAliases": self.aliases}}

    def _frame(self) -> dict:
        """Return the node that is visible from outside; its widgets start with the values of those inside."""
        inputs = [
            {"name": slot.name, "type": slot.type, "link": None} | ({"widget": {"name": slot.name}} if slot.widget else {})
            for slot in self.inputs
        ]
        previews = [{"name": PREVIEW, "sourceNodeId": str(key), "sourcePreviewName": PREVIEW} for key in self.shown]
        return {
            "id": len(self.nodes) + 1,
            "type": self._id(""),
            "pos": [0, 0],
            "size": [WIDE, LINE * len(inputs)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": inputs,
            "outputs": [{"name": slot.name, "type": slot.type, "links": []} for slot in self.outputs],
            "title": self.name,
            "properties": {"previewExposures": previews},
        }

    def _inside(self) -> dict:
        """Return the definition of the subgraph."""
        right = max(node["pos"][0] + node["size"][0] for node in self.nodes)
        return {
            "id": self._id(""),
            "version": 1,
            "state": {"lastGroupId": 0, "lastNodeId": len(self.nodes), "lastLinkId": len(self.links), "lastRerouteId": 0},
            "revision": 0,
            "config": {},
            "name": self.name,
            "inputNode": {"id": INPUTS, "bounding": [-250, 0, 150, LINE * (1 + len(self.inputs))]},
            "outputNode": {"id": OUTPUTS, "bounding": [right + 100, 0, 150, LINE * (1 + len(self.outputs))]},
            "inputs": self._slots("inputs", self.inputs),
            "outputs": self._slots("outputs", self.outputs),
            "widgets": [],
            "nodes": self.nodes,
            "groups": [],
            "links": [dict(zip(LINK, link, strict=True)) for link in self.links],
            "extra": {},
            "category": CATEGORY,
            "description": self.description,
        }

    def _slots(self, kind: str, slots: list[Slot]) -> list[dict]:
        """Return the blueprint's inputs or outputs as its definition lists them."""
        return [{"id": self._id(f"{kind}/{s.name}"), "name": s.name, "type": s.type, "linkIds": [s.link]} for s in slots]

    def _id(self, part: str) -> str:
        """Return an id that is the same every time the file is written."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"perfusion/subgraphs/{self.name}/{part}"))


DRAWN: dict[str, Callable[[Blueprint], None]] = {"Teach a concept": teach, "Two concepts, two places": two_places}
"""Maps a blueprint's name, which is also its file's name, to the function that builds it."""

if __name__ == "__main__":
    steps.exit_with(main)
