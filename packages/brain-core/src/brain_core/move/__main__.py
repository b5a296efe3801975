"""Runs ``brain-move`` as ``python -m brain_core.move``."""

import sys

from brain_core.move.main import main

sys.exit(main())
