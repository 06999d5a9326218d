"""Run the tests with another ComfyUI: `python scripts/release/test_hosts.py VERSION [pytest arguments]`.

It is fetched into `.cache/hosts`, with an environment of its own from its own requirements, as a user's installation has.
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
    """Set that ComfyUI up, then run the tests with it; their exit code is ours."""
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
