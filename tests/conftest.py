"""Fixtures shared by all tests."""

pytest_plugins = ["scripts.harness.fixtures"]
