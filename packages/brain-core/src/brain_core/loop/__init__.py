"""The parts of the training loop: the optimizer step, the epoch pass, its mean and its bar."""
