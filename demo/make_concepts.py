"""Train the demo's two concepts with the same workflow that users drag onto the page.

    python -m demo.make_concepts

Writes demo/concepts/demo-monster.safetensors and demo-robot.safetensors from demo/pictures. The workflows that use concepts load
these by default, so that users can run them without training first.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from demo import make_pictures
from scripts.harness.server import Server
from scripts.harness.workflow import set_widget, to_prompt
from scripts.setup import bootstrap

TAUGHT = ("monster", "robot")
"""Kinds of the individuals for which concepts are trained; see `make_pictures.SHOWN`."""

HERE = Path(__file__).parent


def main() -> None:
    """Train both concepts, or the one that --only selects."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=TAUGHT)
    arguments = parser.parse_args()
    setup = bootstrap.locate()
    base = bootstrap.stocked_base(setup, bootstrap.CACHE / "concepts-base")
    (HERE / "concepts").mkdir(exist_ok=True)
    with Server(setup, base=base) as server:
        info = server.object_info()
        for word in TAUGHT:
            if arguments.only in (None, word):
                shutil.copyfile(teach(server, info, word), HERE / "concepts" / f"demo-{word}.safetensors")


def teach(server: Server, info: dict, word: str) -> Path:
    """Run the training workflow on the pictures of a word and return the concept file that it saves."""
    workflow = json.loads((bootstrap.ROOT / "workflows" / "train_a_concept.json").read_text(encoding="utf-8"))
    for i in range(len(make_pictures.PLACES)):
        set_widget(workflow, f"Picture {i + 1}", "image", f"{word}-{i}.png", info)
    set_widget(workflow, "PerfusionTrain", "superclass", word, info)
    set_widget(workflow, "PerfusionTrain", "trigger", f"<demo-{word}>", info)
    set_widget(workflow, "PerfusionSaveConcept", "filename_prefix", f"demo-{word}", info)
    set_widget(workflow, "PerfusionSaveConcept", "overwrite", True, info)
    server.run(to_prompt(workflow, info), timeout=7200)
    return server.base / "models" / "perfusion" / f"demo-{word}.safetensors"


if __name__ == "__main__":
    main()
