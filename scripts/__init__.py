"""Set-up, test harness, demo and release scripts: everything that runs ComfyUI from outside."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036, here, because every script imports this file first
    came = ".".join(map(str, sys.version_info[:3]))
    sys.exit(f"Failed: expected Python 3.10 or newer, but this is {came} ({sys.executable}); run this with a newer Python.")
