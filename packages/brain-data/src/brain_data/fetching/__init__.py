"""Fetching the batches of an epoch: their rows, their workers, and the position in the epoch."""
