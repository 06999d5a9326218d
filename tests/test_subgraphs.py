"""The blueprints that ship: several nodes in one frame, put onto the page's canvas from the search box, and run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.world import SIDE
from scripts.generate import make_subgraphs, make_workflows
from scripts.harness.page import Page
from scripts.harness.server import Server
from scripts.harness.workflow import set_widget, to_prompt
from scripts.setup import bootstrap

TEACH, PLACES = "Teach a concept", "Two concepts, two places"
INPUTS = {
    TEACH: "model clip vae images masks superclass trigger steps size filename_prefix".split(),
    PLACES: "model clip first_concept first_region first_bias first_temperature first_strength "
    "second_concept second_region second_bias second_temperature second_strength".split(),
}
SETTINGS = {"bias": 0.6, "temperature": 0.15, "strength": 1}
WIDGETS = {
    TEACH: {"superclass": "teddy", "trigger": "<my-teddy>", "steps": 400, "size": 512, "filename_prefix": "concept"},
    PLACES: {f"{which}_{name}": value for which in ("first", "second") for name, value in SETTINGS.items()},
}
LOOK = """([id]) => {
    const node = app.graph.getNodeById(id), inner = each => node.subgraph.getNodeById(each.sourceNodeId).type;
    return {
        title: node.title, inputs: node.inputs.map(each => each.name), outputs: node.outputs.map(each => each.name),
        widgets: node.widgets.map(each => [each.name, each.value]),
        shown: node.serialize().properties.previewExposures.map(inner),
    };
}"""
LINKS_OUT_OF_PLACE = """([id]) => app.graph.getNodeById(id).subgraph.nodes.flatMap(node => node.inputs.filter((each, slot) =>
    each.link !== null && node.graph.getLink(each.link).target_slot !== slot).map(each => `${node.type}.${each.name}`))"""
SET = """([id, wanted]) => app.graph.getNodeById(id).widgets.forEach(each => {
    each.value = wanted[each.name] ?? each.value;
})"""
VIEW = "() => { app.canvas.ds.scale = 0.7; app.canvas.ds.offset = [450, 150]; app.canvas.setDirty(true, true); }"
STEPS = 3


def test_the_files_are_what_the_script_writes(object_info: dict) -> None:
    assert {path.stem for path in make_subgraphs.SUBGRAPHS.iterdir()} == set(make_subgraphs.DRAWN) == set(INPUTS)
    for name in make_subgraphs.DRAWN:
        file = make_subgraphs.SUBGRAPHS / f"{name}.json"
        assert file.read_text(encoding="utf-8") == make_subgraphs.text(name, object_info), "run make_subgraphs"


def test_the_host_lists_them_as_this_packs(server: Server) -> None:
    pack = f"custom_nodes.{bootstrap.PACK}"
    listed = {each["name"]: key for key, each in server.get("/global_subgraphs").items() if each["info"]["node_pack"] == pack}
    assert set(listed) == set(INPUTS)
    for name, key in listed.items():
        (held,) = json.loads(server.get(f"/global_subgraphs/{key}")["data"])["definitions"]["subgraphs"]
        assert held["name"] == name and held["description"]


@pytest.mark.parametrize("name", INPUTS)
def test_a_blueprint_is_found_by_its_name(page: Page, object_info: dict, name: str) -> None:
    page.empty()
    node = page.add(name, 0, 0)
    assert page.ask(LOOK, node) == {
        "title": name,
        "inputs": INPUTS[name],
        "outputs": object_info["PerfusionTrain" if name == TEACH else "PerfusionApply"]["output_name"],
        "widgets": [[*each] for each in WIDGETS[name].items()],
        "shown": ["PerfusionTrain"] if name == TEACH else [],
    }
    assert page.ask(LINKS_OUT_OF_PLACE, node) == [] and page.errors == []


def test_two_concepts_come_to_their_places(page: Page, server: Server, object_info: dict) -> None:
    """As the workflow draws them, with the blueprint in the place of four of its nodes."""
    workflow = json.loads((make_workflows.WORKFLOWS / "two_places.json").read_text(encoding="utf-8"))
    set_widget(workflow, "KSampler", "steps", STEPS, object_info)
    (expected,) = server.outputs(server.run(to_prompt(workflow, object_info)))
    page.empty()
    page.ask("([workflow]) => app.loadGraphData(workflow)", without_the_middle(workflow))
    page.ask(VIEW)
    both = page.add(PLACES, 390, 0)
    connect(page, both)
    page.ask(SET, both, {f"{which}_bias": make_workflows.SETTINGS["bias"] for which in ("first", "second")})
    (drawn,) = server.outputs(page.run())
    assert pixels(drawn).shape == (SIDE, 2 * SIDE, 3) and np.array_equal(pixels(drawn), pixels(expected))
    assert page.errors == []


def without_the_middle(workflow: dict) -> dict:
    """The workflow without the nodes that the blueprint holds, and without their links."""
    inside = {"PerfusionConceptSettings", "PerfusionCombineConcepts", "PerfusionApply"}
    kept = json.loads(json.dumps(workflow))
    kept["nodes"] = [node for node in kept["nodes"] if node["type"] not in inside]
    keys = {node["id"] for node in kept["nodes"]}
    kept["links"] = [link for link in kept["links"] if link[1] in keys and link[3] in keys]
    left = {link[0] for link in kept["links"]}
    for node in kept["nodes"]:
        for socket in node["inputs"]:
            socket["link"] = socket["link"] if socket["link"] in left else None
        for socket in node["outputs"]:
            socket["links"] = [link for link in socket["links"] if link in left]
    return kept


def connect(page: Page, both: int) -> None:
    """Draw the links between the blueprint's node and the rest of the workflow."""
    (base,), (sampler,) = page.of_type("CheckpointLoaderSimple"), page.of_type("KSampler")
    texts, concepts, masks = (page.of_type(kind) for kind in ("CLIPTextEncode", "PerfusionLoadConcept", "MaskComposite"))
    page.connect(base, "MODEL", both, "model")
    page.connect(base, "CLIP", both, "clip")
    for which, concept, mask in zip(("first", "second"), concepts, masks, strict=True):
        page.connect(concept, "concept", both, f"{which}_concept")
        page.connect(mask, "MASK", both, f"{which}_region")
    page.connect(both, "model", sampler, "model")
    for text in texts:
        page.connect(both, "clip", text, "clip")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
