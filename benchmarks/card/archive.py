"""An archive with everything the command needs on a machine without a network: the pack, the host, and missing wheels."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from scripts.setup import bootstrap

MOST_MB = 25
HOST = (
    *("comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras"),
    *("app", "api_server", "utils", "middleware", "alembic_db"),
)
"""The host's folders, of which the archive contains the Python files and SD1.5's tokenizer."""
TOKENIZER = ("sd1_tokenizer", "sd1_clip_config.json", "sd2_clip_config.json")
WHEELS = (
    *("torchsde", "trampoline", "comfy-aimdo", "simpleeval", "blake3", "pydantic", "pydantic-core", "pydantic-settings"),
    *("annotated-types", "typing-inspection", "python-dotenv"),
)
"""What the host imports to load a model and what machines with torch, transformers and aiohttp often lack. comfy-kitchen is left
out: its 45 MB are only for quantised checkpoints."""
PLATFORMS = tuple(f"manylinux{each}_x86_64" for each in ("_2_34", "_2_28", "_2_24", "_2_17", "2014"))
UNPACKED, PACK, HOST_FOLDER, WHEEL_FOLDER = "card", "pack", "ComfyUI", "wheels"
START = """#!/bin/sh
# Measure this machine's graphics card: sh run.sh. Needs Python 3.12 with torch for CUDA, and no network.
cd "$(dirname "$0")" || exit 2
python3 -m pip install -q --no-index --no-deps --no-compile --target site wheels/*.whl || exit 2
cd pack && PYTHONPATH=../site exec python3 -m benchmarks.card --comfyui ../ComfyUI "$@"
"""


def write(path: Path, wheels: bool = True) -> float:
    """Write the archive and return its size in MB; raise SystemExit if it is larger than MOST_MB."""
    setup = bootstrap.locate()
    tracked = subprocess.run(["git", "ls-files", "*.py", "tests/data", "workflows/*.json"], cwd=bootstrap.ROOT, capture_output=True)
    files = {f"{PACK}/{name}": bootstrap.ROOT / name for name in tracked.stdout.decode().splitlines()}
    for file in sorted(setup.comfyui.rglob("*")):
        name = file.relative_to(setup.comfyui)
        of_host = len(name.parts) == 1 or name.parts[0] in HOST
        if file.is_file() and of_host and (file.suffix == ".py" or any(part in TOKENIZER for part in name.parts)):
            files[f"{HOST_FOLDER}/{name.as_posix()}"] = file
    with tarfile.open(path, "w:xz") as archive:
        for name, file in files.items():
            archive.add(file, f"{UNPACKED}/{name}", recursive=False)
        for wheel in fetched(bootstrap.CACHE / "card-wheels") if wheels else ():
            archive.add(wheel, f"{UNPACKED}/{WHEEL_FOLDER}/{wheel.name}")
        content = tarfile.TarInfo(f"{UNPACKED}/run.sh")
        content.size = len(START)
        archive.addfile(content, io.BytesIO(START.encode()))
    size = path.stat().st_size / 2**20
    if size > MOST_MB:
        raise SystemExit(f"expected an archive of at most {MOST_MB} MB, but it has {size:.1f}; leave out a wheel of WHEELS.")
    return size


def fetched(folder: Path) -> list[Path]:
    """Download the wheels unless they are there already, where possible in the versions that the set-up has."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = []
    for name in WHEELS:
        try:
            wanted.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            wanted.append(name)
    platforms = [part for each in PLATFORMS for part in ("--platform", each)]
    how = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *platforms, "-d", str(folder)]
    if len(list(folder.glob("*.whl"))) < len(WHEELS):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", *how, *wanted], check=True)
    return sorted(folder.glob("*.whl"))
