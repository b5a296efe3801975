"""Which checkpoints to keep, and which is best: pure functions of a list of checkpoints."""
