"""Datasets, batches, samplers and loaders that resume at any batch."""

from __future__ import annotations

__version__ = "0.1.0"
