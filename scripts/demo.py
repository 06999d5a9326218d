"""The demo: `python scripts/demo.py` trains a concept and generates with it, in a real ComfyUI.

It first sets up everything it needs. With `--ui` it only starts ComfyUI and prints the address.
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this folder, whose demo.py would hide the package demo

from scripts.harness import server  # noqa: E402
from scripts.setup import bootstrap, environment, steps  # noqa: E402


def main() -> int:
    """Set up, then serve the page or run the demo."""
    parser = argparse.ArgumentParser(description="Teach a concept and generate with it, in a real ComfyUI.")
    parser.add_argument("--ui", action="store_true", help="only start ComfyUI and print its address")
    parser.add_argument("--port", type=int, help="the server's port (8188 with --ui, else a free one; 0 takes a free one)")
    arguments = parser.parse_args()
    start = time.monotonic()
    setup = bootstrap.prepare()
    steps.say(f"Set-up complete after {time.monotonic() - start:.0f} s.")
    if arguments.ui:
        return show(setup, 8188 if arguments.port is None else arguments.port)
    took = f"{time.monotonic() - start:.1f}"
    job = ["-m", "scripts.harness.demo_job", "--port", str(arguments.port or 0), "--setup-seconds", took]
    return environment.run_inside(setup.tools, job, ROOT)


def show(setup: bootstrap.Setup, port: int) -> int:
    """Start ComfyUI and leave it running until Ctrl-C."""
    with server.Server(setup, port) as comfy:
        steps.say(f"ComfyUI is running at {comfy.address}")
        steps.say(f"The workflows are in {ROOT / 'workflows'}: drag one onto the page. Ctrl-C stops the server.")
        try:
            while comfy.process and comfy.process.poll() is None:
                time.sleep(0.5)
        except KeyboardInterrupt:
            steps.say("Stopping.")
            return 0
        raise server.ServerError(f"expected ComfyUI to run until Ctrl-C, but it ended; see {comfy.log_file}.")


if __name__ == "__main__":
    steps.exit_with(main)
