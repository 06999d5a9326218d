"""`python -m fleet`: as `perfusion-train`."""

import sys

from fleet.command import main

sys.exit(main())
