"""Workflows of earlier versions on the demo of today, which holds other things under other names."""

from __future__ import annotations

import json
from pathlib import Path

RENAMED: dict[str, str] = json.loads((Path(__file__).parent / "data" / "renamed.json").read_text(encoding="utf-8"))
"""Part of a name or a prompt, as of version 0.1.0 -> what stands in its place now: of the checkpoint, pictures, concepts, trigger
words and superclasses.
"""


def renamed(workflow: dict) -> dict:
    """The workflow with the demo's names of today in its nodes' widgets; all else as it was saved."""
    for node in workflow["nodes"]:
        node["widgets_values"] = [_renamed(value) for value in node.get("widgets_values") or []]
    return workflow


def _renamed(value: object) -> object:
    if isinstance(value, str):
        for before, now in RENAMED.items():
            value = value.replace(before, now)
    return value
