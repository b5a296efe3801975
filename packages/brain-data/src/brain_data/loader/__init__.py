"""Loaders whose position can be saved: `SaveableDataLoader`, `ResumableLoader`, `LoopedLoader`."""
