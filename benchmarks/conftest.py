"""Fixtures shared by the benchmarks' tests: the same as those of tests/, so that there is one server."""

pytest_plugins = ["scripts.harness.fixtures"]
