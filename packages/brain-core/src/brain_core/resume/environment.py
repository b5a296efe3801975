"""The software and hardware that the bits of a run depend on."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from brain_dist import get_world_size

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["differences", "record_environment"]


def record_environment(device: str = "cpu") -> dict[str, Any]:
    """Return what must be the same for a run to continue with the same bits.

    Parameters
    ----------
    device : str
        The device that is trained on.

    Returns
    -------
    dict of str to str, int or bool
        Keyed by a name for the log.
    """
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "world size": get_world_size(),
        "torch threads": torch.get_num_threads(),
        "device": _name_of(torch.device(device)),
        "machine": platform.machine(),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cuDNN deterministic": torch.backends.cudnn.deterministic,
        "cuDNN benchmark": torch.backends.cudnn.benchmark,
    }


def differences(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Return what changed, as sentences; what only one of them holds is left out.

    Examples
    --------
    >>> differences({"torch threads": 2, "torch": "2.6.0"}, {"torch threads": 1, "torch": "2.6.0"})
    ['torch threads 2 -> 1']
    """
    return [
        f"{name} {saved[name]} -> {value}"
        for name, value in present.items()
        if name in saved and saved[name] != value
    ]


def _name_of(device: torch.device) -> str:
    """Return the kind of device, not its index."""
    if device.type == "cuda" and torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type
