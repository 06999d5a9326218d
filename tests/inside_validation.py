"""Validates *Import Concept* as the host does, while a file is slow to read: run by test_torch_files.py in the host's interpreter.

`python -m tests.inside_validation COMFYUI` prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from pathlib import Path

from perfusion_fleet import inside

inside.enter_with_pack(Path(sys.argv[1]))

import execution  # noqa: E402

import nodes  # noqa: E402

importing = inside.part("nodes.import_concept")


async def main() -> dict:
    """What the host answers, and whether its event loop ran while the file was read."""
    nodes.NODE_CLASS_MAPPINGS["PerfusionImport"] = importing.PerfusionImport
    loop_ran = threading.Event()
    waited = []
    importing.path_of = lambda name: Path(name)
    importing.foreign_formats.load = lambda path: waited.append(loop_ran.wait(20))

    async def another_request() -> None:
        while not waited:
            await asyncio.sleep(0.01)
            loop_ran.set()

    other = asyncio.create_task(another_request())
    await asyncio.sleep(0)
    said = []
    for trigger in ("<it>", "no brackets"):
        prompt = {"1": {"class_type": "PerfusionImport", "inputs": {"file_name": "slow.pt", "trigger": trigger}}}
        _, errors, _ = await execution.validate_inputs("a prompt", prompt, "1", {})
        said.append([error["details"] for error in errors if error["type"] == "custom_validation_failed"])
    await other
    return {"the loop ran": waited, "refused": said}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))
