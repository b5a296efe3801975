"""Batches of rows: padding, stacking and moving to a device."""
