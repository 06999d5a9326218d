"""Take the screenshots of docs/first_concept.md: `python -m scripts.generate.make_walk` in the set-up's environment.

It takes ten minutes. It follows the walkthrough in a real browser on a fresh server, and thereby checks that the walkthrough is
correct.
"""

from __future__ import annotations

import io

from PIL import Image

from scripts.generate.make_workflows import TRAINING
from scripts.harness.page import Page
from scripts.harness.server import Server
from scripts.setup import bootstrap, browser, steps

PICTURES = bootstrap.ROOT / "docs" / "pictures"
WIDTH = 1280
SEEN = 120
"""Training step at which the screenshot is taken."""


def main() -> int:
    """Follow the walkthrough and take its screenshots."""
    setup = bootstrap.locate()
    with Server(setup, base=bootstrap.fresh_base(setup, "walk-base")) as server, browser.launched() as chromium:
        page = Page(chromium, server)
        find(page)
        teach(page)
        use(page)
    return 0


def find(page: Page) -> None:
    """Show the pack's workflows in the template browser."""
    page.browse(bootstrap.PACK)
    page.tab.wait_for_timeout(3000)  # the thumbnails load gradually
    shot(page, "walk_templates")
    page.close_dialogs()


def teach(page: Page) -> None:
    """Show the training workflow: a painted mask, the run, and its results."""
    page.template(bootstrap.PACK, "train_a_concept")
    (train,) = page.of_type("PerfusionTrain")
    page.select(page.of_type("LoadImage")[0])
    page.command("Comfy.MaskEditor.OpenMaskEditor")
    page.tab.wait_for_timeout(4000)
    shot(page, "walk_mask")
    page.close_dialogs()
    page.start()
    # The preparations report progress of their own, during which the node shows only the training images.
    step = """([id, steps]) => { const node = app.graph.getNodeById(id);
        return node.imgs?.[0]?.naturalWidth === 576 ? Math.round(node.progress * steps) : 0; }"""
    page.wait(lambda: page.ask(step, train, TRAINING["steps"]) >= SEEN, f"step {SEEN}", 900)
    page.tab.wait_for_timeout(2500)
    shot(page, "walk_training")
    page.finish(1800)
    page.tab.wait_for_timeout(3000)
    shot(page, "walk_taught")


def use(page: Page) -> None:
    """Use the concept in a prompt."""
    page.template(bootstrap.PACK, "use_concepts")
    page.command("Comfy.RefreshNodeDefinitions")
    (loaded,) = page.of_type("PerfusionLoadConcept")
    page.choose(loaded, "concept_name", "monster_00001")
    page.run()
    page.tab.wait_for_timeout(3000)
    shot(page, "walk_used")


def shot(page: Page, name: str) -> None:
    """Save a screenshot."""
    with Image.open(io.BytesIO(page.tab.screenshot())) as whole:
        small = whole.convert("RGB").resize((WIDTH, round(whole.height * WIDTH / whole.width)), Image.Resampling.LANCZOS)
    small.save(PICTURES / f"{name}.jpg", quality=82, optimize=True)
    steps.say(f"  {name}.jpg")


if __name__ == "__main__":
    steps.exit_with(main)
