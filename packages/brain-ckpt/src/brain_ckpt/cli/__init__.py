"""The command brain-ckpt."""
