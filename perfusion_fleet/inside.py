"""Imports the host's modules into this process without its server, and the pack's modules the way the host imports them."""

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
    """Make `comfy` importable from a ComfyUI folder; must be called before the first import of `comfy`.

    The host computes on the CPU, or with `cpu` False on a graphics card; `arguments` are further arguments of main.py.
    """
    sys.path.insert(0, str(comfyui))
    sys.argv = ["main.py", *(["--cpu"] if cpu else []), *arguments]
    importlib.import_module("comfy.options").enable_args_parsing()
    # Import the host's `utils` now: its nodes.py later puts the folder of comfy/utils.py ahead of this one in sys.path.
    importlib.import_module("utils")


def enter_with_pack(comfyui: Path, cpu: bool = True, arguments: Sequence[str] = ()) -> None:
    """Do the same as `enter`, and make the pack's modules available to `part`, under a separate package name, as in the host."""
    enter(comfyui, cpu, arguments)
    logging.disable(logging.INFO)
    enter_pack()


def enter_pack() -> None:
    """Make only the pack's modules available to `part`; modules that import the host need `enter` first."""
    package = types.ModuleType(PACK)
    package.__path__ = [str(ROOT)]
    sys.modules[PACK] = package


def part(name: str) -> Any:
    """Return a module of the pack, such as "nodes.host"."""
    return importlib.import_module(f"{PACK}.{name}")
