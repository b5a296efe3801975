"""The error of a save that has failed."""

import errno

import pytest

from brain_ckpt import Checkpointer, CheckpointSaveError


class RaisesInState:
    def __init__(self, error):
        self.error = error

    def state_dict(self):
        raise self.error

    def load_state_dict(self, state):
        raise AssertionError


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (TypeError("object of type 'D' has no len()"), "unchanged: fix the cause"),
        (OSError(errno.EIO, "Input/output error"), "unchanged: fix the cause"),
        (OSError(errno.ENOSPC, "No space left on device"), "unchanged: free space"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_a_full_disk_is_a_reason_to_free_space(tmp_path, error, advice):
    """An error of a recoverable's is not the disk's."""
    checkpointer = Checkpointer(tmp_path, {"x": RaisesInState(error)})
    with pytest.raises(CheckpointSaveError, match=f"{advice}, and save again") as caught:
        checkpointer.save_checkpoint()
    assert type(error).__name__ in str(caught.value)
