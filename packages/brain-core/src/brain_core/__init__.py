"""Brain: a PyTorch training loop behind two methods."""

from __future__ import annotations

__version__ = "0.1.0"
