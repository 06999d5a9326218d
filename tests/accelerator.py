"""An accelerator without one: a device beside the processor that computes on it, but whose tensors do not mix with the processor's.

On a graphics card weights are elsewhere, they move, and the host computes in half precision. None of that shows on a processor
alone. The host takes this device for an Ascend card; nothing of the host is changed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

from scripts.setup.environment import clean_environment
from scripts.setup.steps import digest

SOURCE = Path(__file__).with_name("accelerator.cpp")
NAME = "npu"
MEMORY = 8 * 1024**3
VERSION = "from importlib.metadata import version; print(version('torch'))"
PLACES = (
    "import json, sysconfig; from torch.utils.cpp_extension import include_paths, library_paths; "
    "print(json.dumps([include_paths() + [sysconfig.get_paths()['include']], library_paths()]))"
)


def build(python: Path, folder: Path) -> Path:
    """Compile the device for an interpreter's torch, unless that was done before; needs g++ and Python's headers."""

    def printed(script: str) -> str:
        run = subprocess.run([str(python), "-c", script], env=clean_environment(), capture_output=True, text=True, check=True)
        return run.stdout.strip()

    library = folder / f"accelerator-{printed(VERSION)}-{digest(SOURCE)[:12]}.so"
    if not library.exists():
        headers, libraries = json.loads(printed(PLACES))
        assert shutil.which("g++"), (
            "expected g++, which compiles the device that tests run on; install it (Debian: apt install g++)"
        )
        folder.mkdir(parents=True, exist_ok=True)
        part = library.with_suffix(f".{os.getpid()}.part")  # each of the suite's processes compiles its own
        command = [
            "g++",
            "-std=c++20",
            "-fPIC",
            "-shared",
            "-w",
            "-DTORCH_EXTENSION_NAME=accelerator",
            str(SOURCE),
            "-o",
            str(part),
        ]
        command += [f"-I{each}" for each in headers] + [f"-L{each}" for each in libraries]
        command += [f"-Wl,-rpath,{each}" for each in libraries] + ["-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        os.replace(part, library)
    return library


def register(library: Path) -> None:
    """Make the device known to torch, and to the host, which must not have been imported yet."""
    import torch

    torch.utils.rename_privateuse1_backend(NAME)
    spec = importlib.util.spec_from_file_location("accelerator", library)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    module = types.ModuleType(f"torch.{NAME}")
    told = {
        "is_available": True, "device_count": 1, "current_device": 0, "mem_get_info": (MEMORY, MEMORY),
        "memory_stats": {"active_bytes.all.current": 0, "reserved_bytes.all.current": 0}, "get_device_name": "no card",
        "get_amp_supported_dtype": [torch.float16, torch.bfloat16], "is_initialized": True, "_is_in_bad_fork": False,
        "empty_cache": None, "synchronize": None, "set_device": None, "manual_seed_all": None, "init": None, "_lazy_init": None,
    }  # fmt: skip
    for name, answer in told.items():
        setattr(module, name, lambda *_, answer=answer: answer)
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend(for_tensor=True, for_module=True, for_storage=True)
    torch.version.cuda = None  # or the host takes any build for CUDA for a card of Nvidia's
    sys.modules["torch_npu"] = types.ModuleType("torch_npu")
