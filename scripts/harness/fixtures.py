"""Pytest's fixtures: one real ComfyUI server for all tests of a process, in a base directory of its own, and its page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from scripts.harness.page import Page
from scripts.harness.server import Server
from scripts.setup import bootstrap, browser, steps


def pytest_configure() -> None:
    """A test run that is told to terminate stops its server too."""
    steps.stop_when_terminated()


@pytest.fixture(scope="session")
def setup() -> bootstrap.Setup:
    """Where ComfyUI and its interpreter are."""
    return bootstrap.locate()


@pytest.fixture(scope="session")
def base_dir(setup: bootstrap.Setup) -> Path:
    """The tests' own base directory, empty but for the demo's checkpoint and pictures, and nodes that play other packs: a demo run
    stays untouched.
    """
    base = bootstrap.CACHE / f"test-base{os.environ.get('PYTEST_XDIST_WORKER', '')}"
    for folder in ("input", "output", "temp", "models", "user"):
        shutil.rmtree(base / folder, ignore_errors=True)
    bootstrap.stocked_base(setup, base)
    shutil.copyfile(bootstrap.ROOT / "tests" / "other_packs.py", base / "custom_nodes" / "other_packs.py")
    return base


@pytest.fixture(scope="session")
def server(setup: bootstrap.Setup, base_dir: Path) -> Iterator[Server]:
    """A running server on a free port."""
    with Server(setup, base=base_dir) as running:
        yield running


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict[str, dict]:
    """What the server says of its nodes."""
    return server.object_info()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser without a window. Not for the whole session: playwright keeps an event loop running, and one of the tests' own
    would find it.
    """
    with browser.launched() as found:
        yield found


@pytest.fixture(scope="module")
def visited(server: Server) -> Server:
    """The server whose page is opened; a module may have one of its own."""
    return server


@pytest.fixture(scope="module")
def opened(chromium: Browser, visited: Server) -> Iterator[Page]:
    """Its page."""
    page = Page(chromium, visited)
    yield page
    page.close()


@pytest.fixture
def page(opened: Page) -> Page:
    """The page, on which nothing has gone wrong yet."""
    opened.errors.clear()
    return opened
