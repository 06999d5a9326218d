"""`python -m perfusion_fleet`: the same as `perfusion-train`."""

import sys

from perfusion_fleet.command import main

sys.exit(main())
