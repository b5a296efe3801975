"""Data loaders whose position can be saved and restored."""
