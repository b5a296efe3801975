"""``python -m brain_ckpt`` is the command ``brain-ckpt``."""

from __future__ import annotations

import sys

from brain_ckpt.cli.main import main

sys.exit(main())
