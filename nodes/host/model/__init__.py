"""Loaded models: their family, their identity, and their weights on the device."""
