"""Datasets whose items are computed from the rows of a manifest."""
