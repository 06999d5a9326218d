"""The fixtures that all tests share."""

from scripts.harness.fixtures import *  # noqa: F403
