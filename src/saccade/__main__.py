"""``python -m saccade`` is the command line (``torchrun -m saccade train ...``)."""

import sys

from saccade.cli import main

sys.exit(main())
