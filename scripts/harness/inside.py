"""For scripts, tests and benchmarks: the host's own modules in this process. See `perfusion_fleet.inside`, which is published."""

from perfusion_fleet.inside import PACK, enter, enter_with_pack, part

__all__ = ["PACK", "enter", "enter_with_pack", "part"]
