"""ComfyUI's page in a headless browser, operated with mouse and keyboard as a user does."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, ElementHandle, Locator
from playwright.sync_api import Page as Tab

from scripts.harness.server import Server
from scripts.setup import comfyui

READY = "() => window.app?.extensionManager && window.app.graph && window.app.canvas"
SLOT = """([id, kind, name]) => {
    const node = app.graph.getNodeById(id), slots = kind === 'output' ? node.outputs : node.inputs;
    const i = slots.findIndex(slot => slot.name === name);
    return kind === 'output' ? node.getOutputPos(i) : node.getInputPos(i);
}"""
WIDGET = """([id, name]) => {
    const node = app.graph.getNodeById(id), widget = node.widgets.find(each => each.name === name);
    return [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10];
}"""
ON_SCREEN = """([x, y]) => {
    const {scale, offset} = app.canvas.ds, box = app.canvas.canvas.getBoundingClientRect();
    return [box.left + (x + offset[0]) * scale, box.top + (y + offset[1]) * scale];
}"""
SEARCH = re.compile(r"Add a node\.\.\.|Search Nodes\.\.\.")
"""Placeholder of the search box, in newer and older pages."""
OLD = "0.16.3"
OLD_JOBS = re.compile(r"\[Jobs API\] .*\"preview_output\",\s+\"filename\"", re.DOTALL)
"""An error that the page of version `OLD` logs about its own server's job list when a job outputs only text (Preview as Text)."""
LOADED = "() => app.graph._nodes.length > 0 && !app.graph._nodes.some(node => node.ofLastWorkflow)"
TEXT_BOX = "([id, name]) => app.graph.getNodeById(id).widgets.find(each => each.name === name).element"


class Page:
    """The page of a server and the actions of a user on it. Nodes are identified by their ids."""

    def __init__(self, browser: Browser, server: Server, new_renderer: bool | None = None) -> None:
        """Open the page; `new_renderer` chooses between Nodes 2.0 and the classic canvas for the server's user, None leaves it."""
        if new_renderer is not None:
            server.post("/settings", {"Comfy.VueNodes.Enabled": new_renderer})
        self.server, self.errors, self.done = server, [], set()
        self.tab: Tab = browser.new_context(
            viewport={"width": 1800, "height": 1100}, permissions=["clipboard-read", "clipboard-write"]
        ).new_page()
        newcomer = not server.get("/settings").get("Comfy.TutorialCompleted")
        self.tab.goto(server.address)
        self.tab.wait_for_function(READY, timeout=120_000)
        self.tab.wait_for_load_state("networkidle")
        if newcomer:  # the host shows them its templates, possibly with a delay
            self.tab.locator("[role=dialog]").first.wait_for()
            self.close_dialogs()
        # Listen only from here on: errors that the host logs during startup are not the pack's.
        self.tab.on("console", self._heard)
        self.tab.on("pageerror", lambda error: self.errors.append(str(error)))

    def _heard(self, said: ConsoleMessage) -> None:
        old = OLD_JOBS.match(said.text) and comfyui.version_of(self.server.setup.comfyui) == OLD
        if said.type == "error" and not old:
            self.errors.append(f"{said.text} {said.location}")

    def close(self) -> None:
        """Close the page."""
        self.tab.context.close()

    def ask(self, script: str, *given: object) -> Any:
        """Evaluate a JavaScript function in the page, with `given` as its array argument, and return its result."""
        return self.tab.evaluate(script, list(given))

    def command(self, name: str) -> None:
        """Execute one of the host's commands, as from its menu."""
        self.tab.evaluate("name => app.extensionManager.command.execute(name)", name)

    def empty(self) -> None:
        """Open a new, empty canvas with a fixed scale and offset."""
        self.command("Comfy.NewBlankWorkflow")
        self.close_dialogs()
        self.tab.evaluate(
            "() => { app.canvas.ds.scale = 0.8; app.canvas.ds.offset = [280, 220]; app.canvas.setDirty(true, true); }"
        )

    def close_dialogs(self) -> None:
        """Close the dialogs that the host has opened over the canvas."""

        def closed() -> bool:
            if self.tab.locator("[role=dialog]").count() == 0:
                return True
            self.tab.keyboard.press("Escape")
            self.tab.wait_for_timeout(300)
            # In older pages Escape does not close a dialog, but a click beside it does.
            if self.tab.locator("[role=dialog]").count() > 0:
                self.tab.mouse.click(900, 30)
            return False

        self.wait(closed, "the host's dialogs to close")

    # ---- nodes ---------------------------------------------------------------------------------------------------------------

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the screen coordinates of a point of the canvas."""
        return tuple(self.ask(ON_SCREEN, x, y))

    def nodes(self) -> list[int]:
        """Return the ids of all nodes."""
        return self.tab.evaluate("() => app.graph._nodes.map(node => node.id)")

    def place(self, kind: str, x: float = 0, y: float = 0) -> int:
        """Add a node of a type by a script, as one undo step, and return its id; `add` does it by hand."""
        script = """([kind, x, y]) => {
            app.canvas.emitBeforeChange();
            const node = LiteGraph.createNode(kind); node.pos = [x, y]; app.graph.add(node);
            app.canvas.emitAfterChange();
            return node.id; }"""
        return self.ask(script, kind, x, y)

    def of_type(self, name: str) -> list[int]:
        """Return the ids of all nodes of a type."""
        return self.ask("([type]) => app.graph._nodes.filter(node => node.type === type).map(node => node.id)", name)

    def value(self, node: int, widget: str) -> Any:
        """Return a widget's value."""
        return self.ask("([id, name]) => app.graph.getNodeById(id).widgets.find(each => each.name === name).value", node, widget)

    def card(self, node: int) -> Locator:
        """Return the element in which a node shows its concept."""
        script = "([id]) => { app.graph.getNodeById(id).widgets.find(each => each.name === 'card').element.id = `card-${id}`; }"
        self.ask(script, node)
        return self.tab.locator(f"#card-{node}")

    def add(self, name: str, x: float, y: float) -> int:
        """Search for a node by name, place it, drag it to a point of the canvas, and return its id."""
        before, free = set(self.nodes()), (1000, 950)
        box = self.tab.get_by_placeholder(SEARCH)

        def opened() -> bool:
            # On a busy machine the double click may be registered as two single clicks.
            self.tab.mouse.dblclick(*free)
            return self.soon(box.is_visible, 700)

        self.wait(opened, "the search box")
        box.fill(name)
        self.tab.get_by_text(name, exact=True).or_(self.tab.locator("[role=option]", has_text=name)).first.wait_for()

        def placed() -> bool:
            # Older pages respond to the key only after a search result is highlighted.
            if box.is_visible():
                self.tab.keyboard.press("Enter")
            return self.soon(lambda: len(self.nodes()) > len(before), 300)

        self.wait(placed, f"a node {name}")
        (found,) = set(self.nodes()) - before
        # The node follows the mouse as a ghost until a click places it; older pages place a blueprint immediately.
        ghost = "([id]) => app.graph.getNodeById(id).flags.ghost === true"
        if self.soon(lambda: self.ask(ghost, found), 1000):
            self.tab.wait_for_timeout(300)
        self.tab.mouse.click(*free)
        self.wait(lambda: not self.ask(ghost, found), f"{name} on the canvas")
        self.tab.wait_for_timeout(500)
        left, top = self.ask("([id]) => [...app.graph.getNodeById(id).pos]", found)
        self.drag(self.at(left + 60, top - 15), self.at(x + 60, y - 15))
        return found

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag the mouse from one point of the screen to another, at the speed of a hand."""
        self.tab.mouse.move(*start)
        self.tab.wait_for_timeout(100)
        self.tab.mouse.down()
        for part in (0.1, 0.5, 0.9, 1, 1):
            self.tab.wait_for_timeout(50)
            self.tab.mouse.move(*(a + part * (b - a) for a, b in zip(start, end, strict=True)))
        self.tab.wait_for_timeout(50)
        self.tab.mouse.up()
        self.tab.wait_for_timeout(500)  # otherwise the next press could count as a double click

    def connect(self, source: int, output: str, target: int, given: str) -> None:
        """Draw a link from an output to an input."""
        start, end = self.ask(SLOT, source, "output", output), self.ask(SLOT, target, "input", given)
        self.drag(self.at(*start), self.at(*end))
        linked = "([id, name]) => app.graph.getNodeById(id).inputs.find(each => each.name === name).link !== null"
        self.wait(lambda: self.ask(linked, target, given), f"a link to {given}")

    def write(self, node: int, widget: str, text: str) -> None:
        """Type into a text box."""
        self._box(node, widget).fill(text)

    def type(self, node: int, widget: str, text: str) -> None:
        """Type at the end of a text box, key by key."""
        self._box(node, widget).focus()
        self.tab.keyboard.press("Control+End")
        self.tab.keyboard.type(text)

    def _box(self, node: int, widget: str) -> ElementHandle:
        """Return the element of a text box."""
        box = self.tab.evaluate_handle(TEXT_BOX, [node, widget]).as_element()
        assert isinstance(box, ElementHandle)
        return box

    def number(self, node: int, widget: str, value: float | str) -> None:
        """Type a number, or a line of text, into a widget."""
        self.tab.mouse.dblclick(*self.at(*self.ask(WIDGET, node, widget)))
        box = self.tab.locator(".graphdialog input")
        box.fill(str(value))
        box.press("Enter")

    def choose(self, node: int, widget: str, option: str) -> None:
        """Choose an option of a combo widget."""
        self.tab.mouse.click(*self.at(*self.ask(WIDGET, node, widget)))
        self.tab.locator(".litecontextmenu .litemenu-entry", has_text=option).click()

    def help(self, node: int) -> None:
        """Open a node's help with the button that appears above it when it is selected."""
        self.select(node)
        self.tab.get_by_test_id("info-button").click()

    def select(self, node: int) -> None:
        """Select a node by a click on its title."""
        left, top = self.ask("([id]) => [...app.graph.getNodeById(id).pos]", node)
        self.tab.mouse.click(*self.at(left + 60, top - 15))

    def browse(self, pack: str) -> Locator:
        """Open the template browser at a pack's workflows and return its dialog."""
        self.command("Comfy.BrowseTemplates")
        dialog = self.tab.get_by_role("dialog").last
        dialog.get_by_text(pack, exact=True).first.click()
        return dialog

    def template(self, pack: str, name: str) -> None:
        """Open a workflow of a pack from the template browser."""
        dialog = self.browse(pack)
        # The list loads more entries on scrolling; searching is quicker.
        dialog.get_by_placeholder("Search").fill(name)
        found = dialog.get_by_text(name, exact=True).first
        self.tab.evaluate("() => app.graph._nodes.forEach(node => { node.ofLastWorkflow = true; })")

        def opened() -> bool:
            # The results may still move from under the mouse while the search is updating.
            if dialog.is_visible():
                found.click()
            return self.soon(lambda: not dialog.is_visible(), 1500)

        self.wait(opened, f"{name} to open", 60)
        title = "() => app.extensionManager.workflow.activeWorkflow.filename"
        self.wait(lambda: name in self.tab.evaluate(title), f"the workflow {name}")
        self.wait(lambda: self.tab.evaluate(LOADED), f"the nodes of {name}")
        self.tab.wait_for_timeout(300)  # for errors of what is loaded with them

    def drop(self, picture: Path) -> None:
        """Drag a picture from a folder onto the canvas."""
        script = """async ([content, name]) => {
            const bytes = Uint8Array.from(atob(content), (each) => each.charCodeAt(0)), dropped = new DataTransfer();
            dropped.items.add(new File([bytes], name, { type: 'image/png' }));
            for (const kind of ['dragenter', 'dragover', 'drop'])
                app.canvas.canvas.dispatchEvent(new DragEvent(kind, { dataTransfer: dropped, bubbles: true, cancelable: true }));
        }"""
        self.ask(script, base64.b64encode(picture.read_bytes()).decode(), picture.name)

    def shorten(self, widgets: Mapping[str, Mapping[str, float]]) -> None:
        """Set widgets by node type and widget name, on all nodes of these types, without the mouse."""
        script = """([wanted]) => app.graph._nodes.forEach(node => Object.entries(wanted[node.type] ?? {}).forEach(
            ([name, value]) => { node.widgets.find(each => each.name === name).value = value; }))"""
        self.ask(script, widgets)

    # ---- runs ----------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Press Run."""
        self.done = set(self.server.get("/history"))
        self.tab.get_by_test_id("queue-button").first.click()

    def finish(self, timeout: float = 300) -> dict:
        """Wait for the end of the run that was started and return its history entry."""
        found: list[dict] = []

        def finished() -> bool:
            found[:] = [entry for key, entry in self.server.get("/history").items() if key not in self.done]
            return bool(found)

        self.wait(finished, "the end of the run", timeout)
        return found[0]

    def run(self, timeout: float = 300) -> dict:
        """Press Run, wait for the end, and return the history entry of the run."""
        self.start()
        return self.finish(timeout)

    def soon(self, ready: Callable[[], bool], most: float) -> bool:
        """Wait until `ready` returns True, but not longer than `most` milliseconds; return whether it did."""
        end = time.monotonic() + most / 1000
        while not (found := ready()) and time.monotonic() < end:
            self.tab.wait_for_timeout(50)
        return found

    def wait(self, ready: Callable[[], bool], what: str, timeout: float = 20) -> None:
        """Wait until `ready` returns True; AssertionError after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not ready():
            if time.monotonic() > end:
                raise AssertionError(f"waited {timeout} s for {what}; the page said {self.errors}")
            self.tab.wait_for_timeout(30)
