"""Fixtures shared by all tests."""

import os

from scripts.harness.server import Server
from tests import forking

pytest_plugins = ["scripts.harness.fixtures"]


def pytest_configure() -> None:
    """Let servers start sooner than the host imports torch, where processes can be forked."""
    if hasattr(os, "fork"):
        Server.popen = staticmethod(forking.server)
