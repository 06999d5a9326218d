"""Fixtures shared by all tests of the benchmarks."""

from scripts.harness.fixtures import *  # noqa: F403
