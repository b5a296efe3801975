"""``python -m chaos``."""

from __future__ import annotations

import os
import sys

# Before torch is loaded: a pool of threads does not survive the forks that follow.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

if sys.argv[1:2] == ["readers"]:  # torch reads the environment when it is imported
    from chaos.readers.command_line import main as readers

    sys.exit(readers(sys.argv[2:]))

if sys.argv[1:2] == ["soak"]:
    from chaos.soak.command_line import main as soak

    sys.exit(soak(sys.argv[2:]))

from chaos._command_line import main  # noqa: E402 - as above

sys.exit(main())
