"""The pack as people meet it: ComfyUI's page in a real browser, worked by mouse and keyboard."""

from __future__ import annotations

import base64
import io
import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser

from demo.world import SIDE
from perfusion_core.concept import Concept
from scripts.generate import foreign_file
from scripts.generate.make_workflows import SHORT
from scripts.harness.fixtures import measured_before
from scripts.harness.page import Page
from scripts.harness.server import Server
from scripts.setup import bootstrap

WORKFLOWS = sorted(path.stem for path in (bootstrap.ROOT / "workflows").glob("*.json"))
RUN = ("compare_settings", "import_a_concept", "see_attention", "use_two_concepts")
"""Templates that are run on the page; tests of other things run two more, and test_workflows.py runs every one as the page would
hand it to the server."""
FOR_SD15 = "sd15_use_concepts"
FEW_CELLS = SHORT | {"PerfusionSweep": {"steps": 1, "seeds": 1, "values": "0.15"}}


TYPES = "() => app.graph._nodes.map(node => node.type)"
LINK = """([a, output, b, input]) => {
    const [from, to] = [a, b].map(id => app.graph.getNodeById(id));
    from.connect(from.outputs.findIndex(each => each.name === output), to, to.inputs.findIndex(each => each.name === input));
}"""


@pytest.fixture(scope="module")
def fresh(setup: bootstrap.Setup) -> Iterator[Server]:
    """A server that nobody has used, with the concept that the training workflow would save and a file from elsewhere."""
    base = bootstrap.fresh_base(setup, "page-base")
    shutil.copyfile(setup.comfyui / "input" / "example.png", base / "input" / "example.png")  # as ComfyUI comes
    folder = base / "models" / "perfusion"
    own = replace(Concept.load(folder / "demo-monster.safetensors"), trigger="<my-monster>")
    own.save(folder / foreign_file.CONCEPT, torch.float32)
    foreign_file.write(base, folder / foreign_file.CONCEPT, foreign_file.FOREIGN)
    with Server(setup, base=measured_before(base)) as running:
        yield running


@pytest.fixture(scope="module")
def visited(fresh: Server) -> Server:
    return fresh


def test_a_concept_is_used_from_an_empty_canvas(page: Page, fresh: Server) -> None:
    page.empty()
    base = page.add("Load Checkpoint", 0, 0)
    loaded = page.add("Load Concept (Perfusion)", 0, 250)
    applied = page.add("Apply Concept (Perfusion)", 400, 0)
    # Nodes of the host alone are placed by a script, which is quicker.
    latent, positive, negative, sampler, decoded, saved = (
        page.place(kind, x, y)
        for kind, x, y in (
            ("EmptyLatentImage", 400, 280), ("CLIPTextEncode", 800, 0), ("CLIPTextEncode", 800, 280), ("KSampler", 1280, 80),
            ("VAEDecode", 800, 560), ("SaveImage", 400, 560),
        )
    )  # fmt: skip
    for link in (
        (base, "MODEL", applied, "model"), (base, "CLIP", applied, "clip"), (loaded, "concept", applied, "concept"),
        (applied, "model", sampler, "model"), (applied, "clip", positive, "clip"), (applied, "clip", negative, "clip"),
        (positive, "CONDITIONING", sampler, "positive"), (negative, "CONDITIONING", sampler, "negative"),
        (latent, "LATENT", sampler, "latent_image"), (sampler, "LATENT", decoded, "samples"), (base, "VAE", decoded, "vae"),
        (decoded, "IMAGE", saved, "images"),
    ):  # fmt: skip
        if applied in link:
            page.connect(*link)
        else:
            page.ask(LINK, *link)
    page.choose(loaded, "concept_name", "demo-monster")
    page.write(positive, "text", "a photo of a ")
    page.type(positive, "text", "<demo-m")
    page.tab.locator(".perfusion-words").wait_for()
    page.tab.keyboard.press("Enter")
    page.type(positive, "text", " on the grass")
    assert page.value(positive, "text") == "a photo of a <demo-monster> on the grass"
    for node, widget, value in ((latent, "width", 64), (latent, "height", 64), (sampler, "steps", 4)):
        page.number(node, widget, value)
    (picture,) = fresh.outputs(page.run(), saved)
    assert picture.stat().st_size > 1000 and "no prompt contains its trigger word" not in fresh.log()
    shown = "([id]) => app.graph.getNodeById(id).imgs?.length === 1"
    page.wait(lambda: page.ask(shown, saved), "the picture on its node")
    assert page.errors == []


def test_a_concept_is_shown_before_it_is_loaded_and_its_trigger_word_copied(page: Page, fresh: Server) -> None:
    page.empty()
    folder = fresh.base / "models" / "perfusion"
    signed = replace(Concept.load(folder / "demo-robot.safetensors"), details={"author": "Ann <b>B</b>", "license": "CC0"})
    signed.save(folder / "signed.safetensors")
    page.command("Comfy.RefreshNodeDefinitions")
    node = page.add("Load Concept (Perfusion)", 0, 0)
    page.choose(node, "concept_name", "signed")
    card = page.card(node)
    page.wait(lambda: "by Ann <b>B</b>" in card.inner_text(), "the author")
    assert "superclass robot, for sd1" in card.inner_text() and "licence CC0" in card.inner_text()
    assert card.locator("img").evaluate("each => each.complete && each.naturalWidth") == SIDE
    card.get_by_role("button", name="<demo-robot>").click()
    assert page.tab.evaluate("() => navigator.clipboard.readText()") == "<demo-robot>"
    assert page.errors == []


def test_a_preview_that_could_not_be_shown_safely_is_not_shown(page: Page, fresh: Server) -> None:
    """In both nodes; the texts beside it are."""
    page.empty()
    folder = fresh.base / "models" / "perfusion"
    good = Concept.load(folder / "demo-robot.safetensors")
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PNG")
    at = good.preview.index(b"\xff\xc0") + 5
    huge = good.preview[:at] + struct.pack(">HH", 60_000, 60_000) + good.preview[at + 4 :]
    hostile = {"shown": good.preview, "huge": huge, "junk": b"\xff\xd8\xffjunk", "png": buffer.getvalue()}
    files = {name: folder / f"preview-{name}.safetensors" for name in hostile}
    for name, preview in hostile.items():
        replace(good, superclass=f"robot {name}", preview=preview).save(files[name])

    def check(node: int, name: str) -> None:
        page.wait(lambda: f"superclass robot {name}, for sd1" in page.card(node).inner_text(), f"the concept {name}")
        assert page.card(node).locator("img").count() == (name == "shown"), name

    page.command("Comfy.RefreshNodeDefinitions")
    node = page.add("Load Concept (Perfusion)", 0, 0)
    for name in hostile:
        page.choose(node, "concept_name", f"preview-{name}")
        check(node, name)
    page.empty()
    page.add("Concept in Workflow (Perfusion)", 0, 0)
    held = """([text]) => {
        const graph = app.graph.serialize();
        graph.nodes[0].widgets_values[0] = text;
        return app.loadGraphData(graph);
    }"""
    for name, path in files.items():
        page.ask(held, base64.b64encode(path.read_bytes()).decode())
        check(*page.of_type("PerfusionConceptInWorkflow"), name)
        path.unlink()
    assert page.errors == []


def test_a_concept_is_found_by_its_trigger_word_or_its_superclass(page: Page, fresh: Server) -> None:
    page.empty()
    folder = fresh.base / "models" / "perfusion"
    replace(Concept.load(folder / "demo-robot.safetensors"), trigger="<grandmas>", superclass="kettle").save(
        folder / "found.safetensors"
    )
    page.command("Comfy.RefreshNodeDefinitions")
    node = page.add("Load Concept (Perfusion)", 0, 0)
    script = "([id]) => app.graph.getNodeById(id).widgets.find(each => each.name === 'concept_name').options.values"
    page.wait(lambda: "found.safetensors" in page.ask(script, node), "the new name in the list")
    every = page.ask(script, node)
    page.choose(node, "concept_name", "demo-monster")
    for text in ("grandma", "KETTLE", "found.s"):
        page.number(node, "find", text)
        page.wait(lambda: page.ask(script, node) == ["found.safetensors"], f"what {text} finds")
        assert page.value(node, "concept_name") == "demo-monster.safetensors"  # a search chooses nothing
        page.number(node, "find", "nothing like it")
        page.wait(lambda: "No concept has" in page.card(node).inner_text(), "that there is none")
        page.number(node, "find", "")
        page.wait(lambda: page.ask(script, node) == every, "the whole list")
        page.wait(lambda: "superclass monster, for sd1" in page.card(node).inner_text(), "the concept that is chosen")
    assert "bias 0.4, temperature 0.15" in page.card(node).inner_text()
    page.number(node, "find", "kettle")
    page.wait(lambda: page.ask(script, node) == ["found.safetensors"], "what was searched for")
    page.choose(node, "concept_name", "found")
    page.wait(lambda: "superclass kettle, for sd1" in page.card(node).inner_text(), "the concept that was found")
    assert page.errors == []


def test_rows_of_a_graph_without_a_layout_are_shown_and_files_saved_since_are_not_missing(page: Page, fresh: Server) -> None:
    """The page was loaded before the first file was saved; the second one does not exist."""
    page.empty()
    folder = fresh.base / "models" / "perfusion"
    shutil.copyfile(folder / "demo-robot.safetensors", folder / "since.safetensors")
    rows = json.dumps([{"name": f"{name}.safetensors"} for name in ("since", "gone")])
    graph = {"1": {"class_type": "PerfusionLoadConcepts", "inputs": {"concepts": rows}, "_meta": {"title": "rows"}}}
    page.ask("([graph]) => app.loadApiJson(graph, 'graph')", graph)
    gone = page.tab.locator("button", has_text="gone")
    page.wait(lambda: gone.count() == 1 and "line-through" in gone.get_attribute("style"), "the row of the missing file")
    since = page.tab.locator("button", has_text="since")
    assert since.count() == 1 and "line-through" not in since.get_attribute("style")
    (folder / "since.safetensors").unlink()
    assert page.errors == []


def test_a_picture_brings_its_concept_to_a_server_that_has_none(
    page: Page, fresh: Server, chromium: Browser, setup: bootstrap.Setup
) -> None:
    """Bit for bit, with what the node was given in the page."""
    page.template(bootstrap.PACK, "share_a_workflow")
    page.shorten(SHORT)
    (node,) = page.of_type("PerfusionConceptInWorkflow")
    page.choose(node, "hold", "demo-robot")
    page.wait(lambda: "superclass robot" in page.card(node).inner_text(), "the concept that was chosen")
    assert "KB in the workflow" in page.card(node).inner_text()
    (prompt,) = (each for each in page.of_type("CLIPTextEncode") if page.value(each, "text"))
    page.write(prompt, "text", "a photo of a <demo-robot> on the beach")
    (saved,) = page.of_type("SaveImage")
    (picture,) = fresh.outputs(page.run(), saved)
    assert page.errors == []
    base = bootstrap.fresh_base(setup, "stranger-base")
    shutil.rmtree(base / "models" / "perfusion")
    with Server(setup, base=base) as stranger:
        there = Page(chromium, stranger)
        there.drop(picture)
        there.wait(lambda: there.of_type("SaveImage") == [saved], "the workflow of the picture")
        (again,) = stranger.outputs(there.run(), saved)
        there.close()
        assert there.errors == [] and not (base / "models" / "perfusion").exists()
    with Image.open(picture) as one, Image.open(again) as other:
        assert one.tobytes() == other.tobytes()


def test_a_training_can_be_watched_and_stopped_with_what_it_has(page: Page, fresh: Server) -> None:
    page.template(bootstrap.PACK, "train_a_concept")
    (node,) = page.of_type("PerfusionTrain")
    page.shorten({"PerfusionTrain": {"preview_every": 1}})
    page.start()
    size = "([id]) => { const [picture] = app.graph.getNodeById(id).imgs ?? []; return picture?.naturalWidth; }"
    page.wait(lambda: page.ask(size, node) == 576, "the concept and its loss, side by side", 180)
    page.command("Comfy.Interrupt")
    page.finish()
    found = sorted((fresh.base / "models" / "perfusion" / "steps").glob("my-monster-*/*.safetensors"))
    assert len(found) == 1 and Concept.load(found[0]).preview
    assert page.errors == []


def test_every_template_is_listed_and_loads(page: Page, fresh: Server) -> None:
    """One for SD1.5 is opened from the browser of templates; RUN are as well."""
    assert sorted(fresh.get("/workflow_templates")[bootstrap.PACK]) == WORKFLOWS
    for name in WORKFLOWS:
        workflow = json.loads((bootstrap.ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        page.ask("([workflow]) => app.loadGraphData(workflow)", workflow)
        wanted = sorted(node["type"] for node in workflow["nodes"])
        page.wait(lambda wanted=wanted: sorted(page.tab.evaluate(TYPES)) == wanted, f"the nodes of {name}")
        assert page.errors == [], name
    page.template(bootstrap.PACK, FOR_SD15)
    assert len(page.nodes()) == nodes_of(FOR_SD15) and page.errors == []


def nodes_of(name: str) -> int:
    """The number of nodes that a workflow's file has."""
    return len(json.loads((bootstrap.ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))["nodes"])


def test_the_help_of_a_node_is_this_packs_own(page: Page) -> None:
    page.empty()
    node = page.add("Compare Settings (Perfusion)", 0, 0)
    page.help(node)
    page.wait(lambda: page.tab.get_by_text("type the numbers of the best cell").count() > 0, "the help")
    picture = page.tab.locator("img[alt^='A grid of images']")
    page.wait(lambda: picture.evaluate("each => each.complete && each.naturalWidth > 0"), "the picture in it")
    # The page asks for a translation first and takes this where there is none.
    assert [error for error in page.errors if "PerfusionSweep/en.md" not in error] == []


@pytest.mark.parametrize("name", RUN)
def test_a_template_opens_and_runs(page: Page, name: str) -> None:
    page.template(bootstrap.PACK, name)
    assert len(page.nodes()) == nodes_of(name)
    page.shorten(FEW_CELLS)
    assert page.run()["outputs"] and page.errors == []
