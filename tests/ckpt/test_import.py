"""The modules that importing the package loads."""

import subprocess
import sys


def test_yaml_is_imported_when_a_file_is_read():
    """Importing PyYAML takes longer than importing this package."""
    program = (
        "import sys, torch; before = set(sys.modules); from brain_ckpt import Checkpointer; "
        "print('yaml' in set(sys.modules) - before)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("False\n", "")
