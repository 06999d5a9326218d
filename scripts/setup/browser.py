"""A Chromium for tests of the page: one that is already installed, otherwise a new installation."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.setup.steps import SetupError, step

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """Launch a headless browser without background network access; the running interpreter must have playwright."""
    # Chromium's sandbox is not available to root.
    flags = FLAGS + (["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else [])
    from playwright.sync_api import sync_playwright  # imported here, because the interpreter that runs the set-up has no playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found(Path(sys.executable)), args=flags)
        yield browser
        browser.close()


def ensure(python: Path, log: Path) -> None:
    """Install a browser unless `found` finds one: the distribution's package for root with apt-get, otherwise playwright's own."""
    if found(python):
        return
    own = [str(python), "-m", "playwright", "install", "chromium"]
    as_root = os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get")
    debian = [["apt-get", "update", "-q"], ["apt-get", "install", "-q", "-y", "--no-install-recommends", "chromium"]]
    with step("Installing a browser for the tests of the page"), log.open("w", encoding="utf-8") as file:
        for command in debian if as_root else [own]:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, check=False)
    if not found(python):
        raise SetupError(f"expected a Chromium for the tests of the page, but none could be installed (see {log}); install one.")


def found(python: Path) -> str:
    """Return the path of a browser, or "" if there is none."""
    named = os.environ.get("PERFUSION_BROWSER") or next((path for name in NAMES if (path := shutil.which(name))), "")
    if named:
        return named
    ask = "from playwright.sync_api import sync_playwright as p\nwith p() as each: print(each.chromium.executable_path)"
    told = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False).stdout.strip()
    return told if told and Path(told).exists() else ""
