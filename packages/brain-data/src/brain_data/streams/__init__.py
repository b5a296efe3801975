"""Streams: passes over an IterableDataset, with the position of each worker."""
