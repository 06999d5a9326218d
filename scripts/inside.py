"""For scripts, tests and benchmarks: the host's own modules in this process. See `fleet.inside`, which is published."""

from fleet.inside import PACK, enter, enter_with_pack, part

__all__ = ["PACK", "enter", "enter_with_pack", "part"]
