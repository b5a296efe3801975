"""Saving: the plan, the snapshot of the state, the files and their publication."""
