"""Measurements on a graphics card, in one command: see `__main__`."""
