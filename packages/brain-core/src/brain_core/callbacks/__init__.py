"""Callbacks: parts of a training that need no subclass of `Brain`."""
