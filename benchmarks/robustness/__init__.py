"""Broken files, full disks, killed programs, long use."""
