"""Stopping on all ranks: signals, votes and failures."""
