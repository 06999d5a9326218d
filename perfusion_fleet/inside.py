"""The host's own modules in this process, without its server; and the pack's as the host has them."""

from __future__ import annotations

import importlib
import logging
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACK = "pack"


def enter(comfyui: Path, cpu: bool = True, arguments: Sequence[str] = ()) -> None:
    """Make `comfy` importable from a ComfyUI folder, to compute on the processor; call it before the first import of `comfy`.

    `cpu` False lets it take a graphics card; `arguments` are what else main.py would be given.
    """
    sys.path.insert(0, str(comfyui))
    sys.argv = ["main.py", *(["--cpu"] if cpu else []), *arguments]
    importlib.import_module("comfy.options").enable_args_parsing()
    # Before its nodes put the folder with comfy/utils.py in front of this one.
    importlib.import_module("utils")


def enter_with_pack(comfyui: Path, cpu: bool = True, arguments: Sequence[str] = ()) -> None:
    """The same; then `part` gives modules of the pack, which is imported under a name of its own as the host imports it."""
    enter(comfyui, cpu, arguments)
    logging.disable(logging.INFO)
    package = types.ModuleType(PACK)
    package.__path__ = [str(ROOT)]
    sys.modules[PACK] = package


def part(name: str) -> Any:
    """A module of the pack, such as "nodes.host"."""
    return importlib.import_module(f"{PACK}.{name}")
