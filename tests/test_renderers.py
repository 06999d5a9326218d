"""The pack's nodes on the page in the classic renderer and in Nodes 2.0, on the host's own frontend and on a newer one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Route

from perfusion_core.concept import Concept
from scripts.generate.make_workflows import SD15, TRAINING
from scripts.harness.graphs import Graph, latents
from scripts.harness.page import Page
from scripts.harness.server import Server
from scripts.setup import bootstrap

NEWER = "1.58.1"
"""A version of ComfyUI's frontend that is newer than the host's own."""
RENDERERS = [("own", False), ("own", True), (NEWER, True)]
WORKFLOWS = sorted(path for path in (bootstrap.ROOT / "workflows").glob("*.json") if not path.stem.startswith("sd15_"))
SET = """([id, name, value]) => {
    const widget = app.graph.getNodeById(id).widgets.find(each => each.name === name);
    widget.value = value; widget.callback?.(value); }"""
OPTIONS = "([id, name]) => app.graph.getNodeById(id).widgets.find(each => each.name === name).options.values"
SHOWN = """([id, name]) => {
    const box = app.graph.getNodeById(id).widgets.find(each => each.name === name).element.getBoundingClientRect();
    return [box.width / app.canvas.ds.scale, box.height / app.canvas.ds.scale]; }"""
BOXES = """([vue]) => app.graph._nodes.map(node => {
    const box = vue ? document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect() : null;
    const scale = app.canvas.ds.scale, [right, bottom] = node.size;
    const [width, height] = box ? [box.width / scale, box.height / scale] : [right, bottom + 30];
    return [node.type, node.pos[0], node.pos[1] - 30, node.pos[0] + width, node.pos[1] - 30 + height]; })"""
IN_SIGHT = """([id, vue]) => {
    const node = app.graph.getNodeById(id), inputs = node.widgets.filter(each => !each.options?.canvasOnly);
    const shown = each => vue ? !each.options?.advanced || node.showAdvanced : node.isWidgetVisible(each);
    return inputs.filter(shown).map(each => each.name); }"""
TRAINED_WITH = ("steps", "batch", "size", "word_rate", "output_rate", "train_bias", "train_temperature", "flip", "min_snr")
PRESETS = {
    name: {setting: given[setting] for setting in TRAINED_WITH}
    for name, given in (("demo", TRAINING), ("SD1.5", SD15["PerfusionTrain"]))
}
"""What the presets should fill in: what the workflows have."""
EIGHT = ["superclass", "trigger", "steps", "batch", "size", "seed", "word_rate", "output_rate"]


@pytest.fixture(scope="module", params=RENDERERS, ids=lambda given: f"{given[0]}-{'new' if given[1] else 'classic'}")
def renderer(request: pytest.FixtureRequest) -> tuple[str, bool]:
    return request.param


@pytest.fixture(scope="module")
def serving(setup: bootstrap.Setup) -> Iterator[Callable[[str], Server]]:
    """The server with a version of the frontend, with a broken file beside the demo's concepts; the last one runs on."""
    running: dict[str, Server] = {}

    def served(version: str) -> Server:
        if version not in running:
            stop()
            base = bootstrap.fresh_base(setup, "renderer-base")
            (base / "models" / "perfusion" / "zz-broken.safetensors").write_bytes(b"no concept")
            given = [] if version == "own" else ["--front-end-root", str(frontend(version))]
            running[version] = Server(setup, base=base, arguments=given)
            running[version].start()
        return running[version]

    def stop() -> None:
        for server in running.values():
            server.stop()
        running.clear()

    yield served
    stop()


@pytest.fixture(scope="module")
def visited(serving: Callable[[str], Server], renderer: tuple[str, bool]) -> Server:
    """A server with that frontend, whose user has chosen that renderer; no result of another renderer's tests is kept."""
    version, new = renderer
    server = serving(version)
    server.free()
    server.post("/settings", {"Comfy.VueNodes.Enabled": new})
    return server


def frontend(version: str) -> Path:
    """The folder of a version of the frontend, which is installed there unless it was before."""
    folder = bootstrap.CACHE / "frontends" / version
    if not (folder / "comfyui_frontend_package" / "static" / "index.html").exists():
        package = f"comfyui-frontend-package=={version}"
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, package], check=True)
    return folder / "comfyui_frontend_package" / "static"


def test_cards_keep_their_size_and_say_what_they_show(page: Page, visited: Server) -> None:
    page.empty()
    node, held = page.place("PerfusionLoadConcept"), page.place("PerfusionConceptInWorkflow", 400)
    page.ask(SET, node, "concept_name", "demo-robot.safetensors")
    card = page.card(node)
    page.wait(lambda: "superclass robot, for sd1" in card.inner_text(), "the card")
    width, height = page.ask(SHOWN, node, "card")
    picture = card.locator("img").bounding_box()
    assert height <= 110 and picture["height"] <= 101 * page.ask("() => app.canvas.ds.scale") and width > 200
    assert card.get_attribute("role") == "status" and card.locator("img").get_attribute("alt") == "A preview of <demo-robot>"
    assert card.get_by_role("button").get_attribute("aria-label") == "Copy the trigger word <demo-robot>"
    assert contrast(page, card) > 4.5
    page.tab.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'light')")
    page.wait(lambda: contrast(page, card) > 4.5, "a contrast that can be read in the light theme")
    page.tab.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
    for name, sentence in (
        ("zz-broken.safetensors", "This file is not a usable concept"),
        ("gone.safetensors", "There is no concept with this name"),
        ("(no concept saved yet)", "There are no concepts yet"),
    ):
        page.ask(SET, node, "concept_name", name)
        page.wait(lambda sentence=sentence: sentence in card.inner_text(), sentence)
    page.tab.route("**/view_metadata/**", lambda route: route.abort())
    page.ask(SET, node, "concept_name", "demo-monster.safetensors")
    page.wait(lambda: "The server is not responding" in card.inner_text(), "that the server is gone")
    page.tab.unroute("**/view_metadata/**")
    page.errors.clear()  # the request that the test itself has cut off
    page.wait(lambda: "No concept is stored here yet" in page.card(held).inner_text(), "the other card")
    assert page.errors == []


def contrast(page: Page, card: object) -> float:
    """The contrast of a card's text on the page's own background, by WCAG's formula."""
    script = """(card) => {
        const parse = text => text.match(/[\\d.]+/g).map(Number);
        const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const probe = document.createElement('div');
        probe.style.background = 'var(--comfy-menu-bg)'; document.body.append(probe);
        const [a, b] = [parse(getComputedStyle(card).color), parse(getComputedStyle(probe).backgroundColor)].map(light);
        probe.remove();
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }"""
    return card.evaluate(script)


def test_each_card_asks_the_server_once(page: Page, visited: Server) -> None:
    page.empty()
    asked: list[str] = []

    def count(route: Route) -> None:
        asked.append(route.request.url)
        route.continue_()

    page.tab.route("**/view_metadata/**", count)
    node = page.place("PerfusionLoadConcept")
    page.wait(lambda: "for sd1" in page.card(node).inner_text(), "the card")
    page.tab.wait_for_timeout(300)
    page.tab.unroute("**/view_metadata/**")
    assert len(asked) == 1


def test_a_node_says_on_itself_what_it_did_and_lists_know_it_at_once(page: Page, visited: Server) -> None:
    page.empty()
    loaded, saved = page.place("PerfusionLoadConcept"), page.place("PerfusionSaveConcept", 400)
    other = page.place("PerfusionLoadConcept", 800)
    page.ask("([a, b]) => app.graph.getNodeById(a).connect(0, app.graph.getNodeById(b), 0)", loaded, saved)
    page.ask(SET, loaded, "concept_name", "demo-monster.safetensors")
    page.ask(SET, saved, "filename_prefix", "anew")
    page.run()
    message = "([id]) => app.graph.getNodeById(id).widgets.find(each => each.name === 'message')?.element.innerText ?? ''"
    page.wait(lambda: "saved as anew_00001.safetensors" in page.ask(message, saved), "the message")
    assert "<demo-monster>" in page.ask(message, saved)
    page.wait(lambda: "anew_00001.safetensors" in page.ask(OPTIONS, other, "concept_name"), "the new concept in the list")
    assert page.ask(OPTIONS, other, "concept_name").count("anew_00001.safetensors") == 1
    (visited.base / "models" / "perfusion" / "anew_00001.safetensors").unlink()
    assert page.errors == []


def test_a_linked_name_shows_what_ran(page: Page, visited: Server) -> None:
    page.empty()
    text, node, shown = page.place("PrimitiveNode"), page.place("PerfusionLoadConcept", 400), page.place("PreviewAny", 800)
    link = """([a, b]) => { const node = app.graph.getNodeById(b);
        app.graph.getNodeById(a).connect(0, node, node.inputs.findIndex(each => each.name === 'concept_name')); }"""
    page.ask(link, text, node)
    page.ask("([a, b]) => app.graph.getNodeById(a).connect(1, app.graph.getNodeById(b), 0)", node, shown)
    page.wait(lambda: "comes from another node" in page.card(node).inner_text(), "that the name is linked")
    page.wait(lambda: page.ask("([id]) => app.graph.getNodeById(id).widgets?.length > 0", text), "the other node's list")
    page.tab.wait_for_timeout(800)  # older pages make that list twice
    page.ask("([id, name]) => { app.graph.getNodeById(id).widgets[0].value = name; }", text, "demo-robot.safetensors")
    page.run()
    page.wait(lambda: "superclass robot, for sd1" in page.card(node).inner_text(), "what ran")
    # A widget that a subgraph shows outside keeps its value there: what the node inside says after the run counts.
    inner = page.place("PerfusionLoadConcept", 400, 400)
    page.ask("([id]) => app.graph.getNodeById(id).onExecuted({ concept_name: ['demo-robot.safetensors'] })", inner)
    page.wait(lambda: "superclass robot, for sd1" in page.card(inner).inner_text(), "what ran inside")
    page.ask(SET, inner, "concept_name", "demo-monster.safetensors")
    page.wait(lambda: "superclass monster, for sd1" in page.card(inner).inner_text(), "what was chosen since")
    assert page.errors == []


def test_a_held_concept_is_the_last_chosen_and_can_be_taken_back(page: Page, visited: Server) -> None:
    page.empty()
    node = page.place("PerfusionConceptInWorkflow")
    page.wait(lambda: len(page.ask(OPTIONS, node, "hold")) > 2, "the list")
    page.tab.wait_for_timeout(300)
    page.ask(SET, node, "hold", "demo-robot.safetensors")
    page.ask(SET, node, "hold", "demo-monster.safetensors")
    page.wait(lambda: "superclass monster" in page.card(node).inner_text(), "the concept that was chosen last")
    assert page.value(node, "hold") == "choose a concept…"
    page.ask(SET, node, "hold", "zz-broken.safetensors")
    page.wait(lambda: "cannot be used" in page.card(node).inner_text(), "the server's own sentence")
    page.tab.route("**/perfusion/file**", lambda route: route.fulfill(status=502, body="<html>Bad gateway"))
    page.ask(SET, node, "hold", "demo-robot.safetensors")
    page.wait(lambda: "(502)" in page.card(node).inner_text(), "a sentence of its own")
    page.tab.unroute("**/perfusion/file**")
    undone(page)
    page.command("Comfy.Redo")
    page.wait(lambda: bool(page.value(*page.of_type("PerfusionConceptInWorkflow"), "data")), "the held concept")
    page.ask("([id]) => { const node = app.graph.getNodeById(id); node.refreshComboInNode(); node.refreshComboInNode(); }", node)
    page.tab.wait_for_timeout(500)
    names = page.ask(OPTIONS, *page.of_type("PerfusionConceptInWorkflow"), "hold")
    assert len(names) == len(set(names))


def undone(page: Page) -> None:
    """Press Ctrl+Z until the node is empty; the new renderer may have noted a size as a change of its own."""

    def emptied() -> bool:
        page.command("Comfy.Undo")
        page.tab.wait_for_timeout(500)
        return not page.value(*page.of_type("PerfusionConceptInWorkflow"), "data")

    assert emptied() or emptied() or emptied()


def test_most_people_see_eight_settings_of_a_training(page: Page, renderer: tuple[str, bool]) -> None:
    page.empty()
    node, new = page.place("PerfusionTrain"), renderer[1]
    page.wait(lambda: page.ask(IN_SIGHT, node, new) == EIGHT, "eight settings")
    if new:
        page.tab.locator(f"[data-node-id='{node}']").get_by_text("Show advanced inputs").click()
    else:
        button = "([id]) => app.graph.getNodeById(id).widgets.find(each => each.name === 'all settings').callback()"
        page.ask(button, node)
    page.wait(lambda: len(page.ask(IN_SIGHT, node, new)) > 15, "all settings")
    size = page.ask("([id]) => app.graph.getNodeById(id).size[1]", node)
    page.ask("async () => app.loadGraphData(app.graph.serialize())")
    (again,) = page.of_type("PerfusionTrain")
    if not new:  # the new renderer folds it up again, as it does every node
        page.wait(lambda: len(page.ask(IN_SIGHT, again, new)) > 15, "all settings again")
        assert page.ask("([id]) => app.graph.getNodeById(id).size[1]", again) == size
    assert page.errors == []


def test_a_preset_fills_the_settings_of_the_training_that_it_is_connected_to(page: Page) -> None:
    """Whether it is chosen before they are connected or after; as set, and on loading, it leaves them alone."""
    page.empty()
    connect = """([from, to]) => {
        const [options, training] = [from, to].map(id => app.graph.getNodeById(id));
        options.connect(0, training, training.inputs.findIndex(each => each.name === 'options')); }"""
    training, options = page.place("PerfusionTrain", 400), page.place("PerfusionTrainingOptions")
    names = list(PRESETS["demo"])

    def values(node: int) -> dict[str, object]:
        return {name: page.value(node, name) for name in names}

    before = values(training)
    page.ask(SET, options, "preset", "demo")
    assert values(training) == before
    page.ask(connect, options, training)
    page.wait(lambda: values(training) == PRESETS["demo"], "the demo's settings")
    page.ask(SET, training, "steps", 77)
    page.ask(SET, options, "preset", "as set")
    assert page.value(training, "steps") == 77
    page.ask(SET, options, "preset", "SD1.5")
    page.wait(lambda: values(training) == PRESETS["SD1.5"], "the settings for SD1.5")
    page.ask(SET, options, "preset", "by checkpoint")
    page.wait(lambda: page.tab.get_by_text("Could not find which checkpoint").count() > 0, "a reason")
    assert values(training) == PRESETS["SD1.5"]
    loader, lora = page.place("CheckpointLoaderSimple"), page.place("LoraLoaderModelOnly")
    page.ask(
        """([from, to, last]) => { for (const [a, b] of [[from, to], [to, last]])
            app.graph.getNodeById(a).connect(0, app.graph.getNodeById(b), 0); }""",
        loader,
        lora,
        training,
    )
    page.ask(SET, options, "preset", "by checkpoint")
    page.wait(lambda: values(training) == PRESETS["demo"], "the demo's settings, by the checkpoint")
    page.ask(SET, options, "preset", "SD1.5")
    page.wait(lambda: values(training) == PRESETS["SD1.5"], "the settings for SD1.5")
    page.ask(SET, training, "steps", 78)
    other = page.place("PerfusionTrain", 800)
    for each in (training, other):
        page.ask(connect, options, each)
    # A training at its defaults is filled, but not one with values of its own.
    page.wait(lambda: values(other) == PRESETS["SD1.5"], "the settings of the other one")
    assert values(training) == PRESETS["SD1.5"] | {"steps": 78}
    page.ask("([id]) => app.graph.remove(app.graph.getNodeById(id))", other)
    page.ask("async () => app.loadGraphData(app.graph.serialize())")
    (again,) = page.of_type("PerfusionTrain")
    page.tab.wait_for_timeout(500)
    assert values(again) == PRESETS["SD1.5"] | {"steps": 78} and page.errors == []


def test_a_trigger_is_completed_while_it_is_typed(page: Page, visited: Server) -> None:
    page.empty()
    node = page.place("CLIPTextEncode")
    page.tab.wait_for_timeout(500)
    box, words = page.tab.locator("textarea").last, page.tab.locator(".perfusion-words")
    box.click()
    box.press_sequentially("a photo of a <demo")
    words.locator("[role=option]").nth(1).wait_for()
    assert words.locator("img").count() == 2 and "monster" in words.locator("[aria-selected=true]").inner_text()
    page.tab.keyboard.press("ArrowDown")
    page.tab.keyboard.press("Enter")
    assert box.input_value() == "a photo of a <demo-robot>" == page.value(node, "text")
    assert words.count() == 0
    # A bare name is a hint that Enter leaves alone.
    box.press_sequentially(" and demo-m")
    words.get_by_text("including the brackets").wait_for()
    page.tab.keyboard.press("Enter")
    assert box.input_value().endswith("demo-m\n")
    box.press_sequentially("demo-m")
    words.wait_for()
    page.tab.keyboard.press("Tab")
    assert box.input_value().endswith("\n<demo-monster>") and page.value(node, "text") == box.input_value()
    # The rest of a word in brackets goes with what was typed.
    box.fill("a <robot>")
    for key in ("Home", *["ArrowRight"] * 3):
        page.tab.keyboard.press(key)
    box.press_sequentially("demo-m")
    words.wait_for()
    page.tab.keyboard.press("Tab")
    assert box.input_value() == "a <demo-monster>"
    # Once the caret has moved, keys are the page's again.
    box.fill("")
    box.press_sequentially("<demo")
    words.wait_for()
    page.tab.keyboard.press("Home")
    page.tab.keyboard.press("Enter")
    assert box.input_value() == "\n<demo" and words.count() == 0
    # With an input method at work it stays out of the way, until that is done.
    page.tab.keyboard.press("Control+a")
    page.tab.keyboard.press("Delete")
    compose = """(box) => {
        const send = (kind, Kind, given) => box.dispatchEvent(new Kind(kind, { bubbles: true, cancelable: true, ...given }));
        send('compositionstart', CompositionEvent, { data: '' });
        box.value = '<demo'; box.setSelectionRange(5, 5);
        send('input', InputEvent, { data: '<demo', isComposing: true });
        const key = new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true, cancelable: true });
        return box.dispatchEvent(key); }"""
    assert box.evaluate(compose)  # nobody took the key
    page.tab.wait_for_timeout(400)
    assert words.count() == 0 and box.input_value() == "<demo"
    box.evaluate("box => box.dispatchEvent(new CompositionEvent('compositionend', { bubbles: true, data: '<demo' }))")
    words.wait_for()
    assert page.errors == []


def test_many_concepts_are_rows_of_one_node(page: Page, visited: Server) -> None:
    page.empty()
    node = page.place("PerfusionLoadConcepts")
    rows = page.tab.locator("button", has_text="add a concept…")
    for name in ("demo-monster", "demo-robot"):
        rows.click()
        page.tab.locator("dialog input").fill(name)
        page.tab.keyboard.press("Enter")
        page.tab.locator("dialog").wait_for(state="detached")
    page.tab.get_by_label("Use demo-robot.safetensors").uncheck()
    bias = page.tab.get_by_label("Bias. Empty").first
    bias.fill("0.5")
    bias.press("Tab")
    assert page.tab.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove demo-monster.safetensors"
    wanted = [
        {"name": "demo-monster.safetensors", "on": True, "strength": None, "bias": 0.5},
        {"name": "demo-robot.safetensors", "on": False, "strength": None, "bias": None},
    ]
    page.wait(lambda: json.loads(page.value(node, "concepts")) == wanted, "the rows")
    page.ask("async () => app.loadGraphData(app.graph.serialize())")
    (again,) = page.of_type("PerfusionLoadConcepts")
    page.wait(lambda: page.tab.get_by_label("Bias. Empty").count() == 2, "the rows again")
    page.tab.get_by_label("Remove demo-robot.safetensors").click()
    page.wait(lambda: json.loads(page.value(again, "concepts")) == wanted[:1], "one row")
    assert page.errors == []


def settled_boxes(page: Page, new: bool) -> list:
    """The boxes on the page, once they have not moved for a moment."""
    before = None
    for _ in range(20):
        page.tab.wait_for_timeout(80)
        boxes = page.ask(BOXES, new)
        if boxes == before:
            return boxes
        before = boxes
    raise AssertionError("the boxes keep moving")


def test_no_boxes_of_a_shipped_workflow_overlap(page: Page, renderer: tuple[str, bool]) -> None:
    """With the cards of concepts that are there."""
    found = []
    for path in WORKFLOWS:
        page.ask("async ([graph]) => { await app.loadGraphData(graph); }", json.loads(path.read_text(encoding="utf-8")))
        page.tab.evaluate("() => Object.assign(app.canvas.ds, { scale: 0.4, offset: [700, 500] })")
        page.tab.evaluate("() => app.canvas.setDirty(true, true)")
        boxes = settled_boxes(page, renderer[1])
        for i, (one, *a) in enumerate(boxes):
            for other, *b in boxes[i + 1 :]:
                apart = min(a[2], b[2]) - max(a[0], b[0]) <= 1 or min(a[3], b[3]) - max(a[1], b[1]) <= 1
                found += [] if apart else [(path.stem, one, other)]
    assert found == []


def test_ten_concepts_in_one_node_are_ten_in_a_row(server: Server) -> None:
    """The same latents to the bit."""
    folder, names = server.base / "models" / "perfusion", [f"many-{i}.safetensors" for i in range(10)]
    one = Concept.load(folder / "demo-monster.safetensors")
    for i, name in enumerate(names):
        values = {layer: (1 + 0.1 * i) * outputs for layer, outputs in one.values.items()}
        replace(one, trigger=f"<many-{i}>", values=values).save(folder / name)
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    rows = [{"name": name, "strength": 0.9, "bias": 0.3 + 0.02 * i} for i, name in enumerate(names)]
    together = graph.apply(model, clip, [graph.add("PerfusionLoadConcepts", concepts=json.dumps(rows)), 0])
    apart = model, clip
    for row in rows:
        settings = {"bias": row["bias"], "strength": row["strength"], "temperature": one.temperature}
        apart = graph.apply(*apart, graph.load(row["name"], **settings))
    text = "a photo of a <many-0> and a <many-7>"
    blank = graph.text(clip, "")
    drawn = [graph.sample(m, graph.text(c, text), blank, steps=2) for m, c in (together, apart, (model, together[1]))]
    found, wanted, without = latents(server, graph, *drawn)
    for name in names:
        (folder / name).unlink()
    assert (found == wanted).all() and not (found == without).all()
