"""Loading: choosing a checkpoint, verifying it and restoring objects from it."""
