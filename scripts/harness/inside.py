"""Access to the host's modules in this process, for scripts, tests and benchmarks.

Re-exports `perfusion_fleet.inside`, which ships with the pack.
"""

from perfusion_fleet.inside import PACK, enter, enter_with_pack, part

__all__ = ["PACK", "enter", "enter_with_pack", "part"]
