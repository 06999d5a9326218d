"""Pytest fixtures: one real ComfyUI server for all tests of a process, in its own base directory, and its page."""

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
    """Make a test run that is terminated stop its server too."""
    steps.stop_when_terminated()


@pytest.fixture(scope="session")
def setup() -> bootstrap.Setup:
    """The locations of ComfyUI and its interpreter."""
    return bootstrap.locate()


@pytest.fixture(scope="session")
def base_dir(setup: bootstrap.Setup) -> Path:
    """A base directory for the tests, so that they leave a demo run untouched.

    It starts with only the demo's checkpoint, pictures and concepts, and a module of nodes that act like other packs.
    """
    base = bootstrap.CACHE / f"test-base{os.environ.get('PYTEST_XDIST_WORKER', '')}"
    for folder in ("input", "output", "temp", "models", "user"):
        shutil.rmtree(base / folder, ignore_errors=True)
    bootstrap.stocked_base(setup, base)
    for name in ("other_packs.py", "other_prompts.py", "small_wan.py"):
        shutil.copyfile(bootstrap.ROOT / "tests" / name, base / "custom_nodes" / name)
    return base


def measured_before(base: Path) -> Path:
    """Copy this run's text encoder measurements, which take half a minute, into a base directory; return it."""
    room = base / "models" / "perfusion" / ".work"
    for measured in bootstrap.CACHE.glob("test-base*/models/perfusion/.work/covariance-*.safetensors"):
        room.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(measured, room / measured.name)
    return base


@pytest.fixture(scope="session")
def server(setup: bootstrap.Setup, base_dir: Path) -> Iterator[Server]:
    """A running server on a free port."""
    with Server(setup, base=base_dir) as running:
        yield running


@pytest.fixture(scope="session")
def object_info(server: Server) -> dict[str, dict]:
    """The server's description of its nodes."""
    return server.object_info()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A headless browser. The scope is not the session, because playwright keeps an event loop running, which would conflict with
    event loops that tests start themselves.
    """
    with browser.launched() as found:
        yield found


@pytest.fixture(scope="module")
def visited(server: Server) -> Server:
    """The server whose page is opened; a module may override it with its own."""
    return server


@pytest.fixture(scope="module")
def opened(chromium: Browser, visited: Server) -> Iterator[Page]:
    """The page of the visited server."""
    page = Page(chromium, visited)
    yield page
    page.close()


@pytest.fixture
def page(opened: Page) -> Page:
    """The page, with its list of errors cleared."""
    opened.errors.clear()
    return opened
