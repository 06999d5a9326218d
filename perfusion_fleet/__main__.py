"""`python -m perfusion_fleet`: as `perfusion-train`."""

import sys

from perfusion_fleet.command import main

sys.exit(main())
