"""Run the tests with another version of ComfyUI: `python scripts/release/test_hosts.py VERSION [pytest arguments]`.

That version is downloaded into `.cache/hosts`, with its own environment built from its own requirements, as in a user's
installation.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from scripts import test  # noqa: E402
from scripts.setup import bootstrap, comfyui, environment, steps  # noqa: E402

HOSTS = bootstrap.CACHE / "hosts"


def main() -> int:
    """Set up that version of ComfyUI, run the tests with it, and return their exit code."""
    version = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if version not in comfyui.CARRIERS:
        raise steps.SetupError(f"expected a version of ComfyUI, one of {', '.join(comfyui.CARRIERS)}, but {version!r} came.")
    folder = HOSTS / version / "ComfyUI"
    comfyui.fetch(folder, Path(sys.executable), HOSTS / version / "download.log", version)
    environment.ensure(folder / ".venv", [folder / "requirements.txt"], HOSTS / version / "install.log")
    os.environ["COMFYUI_PATH"] = str(folder)
    os.environ.pop("COMFYUI_PYTHON", None)
    return test.main()


if __name__ == "__main__":
    steps.exit_with(main)
