"""Calls that ranks make together: what they are, where they were made, and waiting for them."""
