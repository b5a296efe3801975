"""``python -m release``."""

from __future__ import annotations

import sys

from release.command_line import main

sys.exit(main(sys.argv[1:]))
