"""Differences between the supported versions of torch."""

from __future__ import annotations

import warnings

import torch


def script_module(module: torch.nn.Module) -> torch.nn.Module:
    """Return a module as TorchScript, which torch deprecates since 2.13 but still has in 2.15."""
    with warnings.catch_warnings():
        # A DeprecationWarning of torch 2.13, a FutureWarning of 2.15.
        warnings.filterwarnings("ignore", ".*torch.jit.script.*is deprecated")
        scripted: torch.nn.Module = torch.jit.script(module)
    return scripted
