"""The modules of a Brain: their container, compiling them, wrapping them for several ranks."""
