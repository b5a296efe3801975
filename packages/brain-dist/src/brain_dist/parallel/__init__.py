"""Wrapping modules for several ranks, and what follows from it."""
