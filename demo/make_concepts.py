"""Teach the demo's two concepts, by the very workflow that users drag onto the page.

    python -m demo.make_concepts

Writes demo/concepts/demo-monster.safetensors and demo-robot.safetensors from demo/pictures. The workflows that use concepts start
from these, so that nobody has to train before seeing them.
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
"""Kinds whose individual is taught; see `make_pictures.SHOWN`."""

HERE = Path(__file__).parent


def main() -> None:
    """Teach both."""
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
    """The concept file that the training workflow saves for the pictures of a word."""
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
