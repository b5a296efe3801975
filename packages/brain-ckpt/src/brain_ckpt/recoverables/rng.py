"""The states of the random number generators of this process."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


class RNGState:
    """Saves and restores the generators of Python, NumPy, torch and every accelerator.

    Generators differ between ranks, so add it with ``per_rank=True``::

        checkpointer.add_recoverable("rng", RNGState(), per_rank=True)

    NumPy's global generator is included if NumPy is imported.  SpeechBrain's SaveableGenerator
    saves torch's only, and loads the state of the first rank on all ranks.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the states as tensors and numbers."""
        version, words, gauss = random.getstate()
        state: dict[str, Any] = {
            "python": [version, torch.tensor(words), gauss],
            "torch": torch.get_rng_state(),
        }
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            kind, keys, position, has_gauss, cached = numpy.random.get_state()
            state["numpy"] = [
                str(kind),
                torch.from_numpy(keys.astype("int64")),
                int(position),
                int(has_gauss),
                float(cached),
            ]
        for name, module in _accelerators():
            # Reading the state of an unused device would initialize it.
            if name == "mps" or module.is_initialized():
                state[name] = _get_all(module)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the states; states of devices that this process lacks are ignored.

        Raises
        ------
        ValueError
            If a state is not that of a generator.
        """
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words.tolist()), gauss))
        torch.set_rng_state(state["torch"])
        if "numpy" in state:
            import numpy  # noqa: ICN001 - imported only if the state has it

            kind, keys, position, has_gauss, cached = state["numpy"]
            words_array = keys.numpy().astype(numpy.uint32)
            numpy.random.set_state((kind, words_array, position, has_gauss, cached))  # noqa: NPY002 - the global generator
        for name, module in _accelerators():
            for index, saved in enumerate(state.get(name, [])):
                if index < _device_count(module):
                    _set_one(module, saved, index)


def _accelerators() -> list[tuple[str, Any]]:
    available: list[tuple[str, Any]] = []
    for name in ("cuda", "xpu", "mps"):
        module = getattr(torch, name, None)
        if module is not None and module.is_available():
            available.append((name, module))
    return available


def _device_count(module: Any) -> int:
    return int(module.device_count()) if hasattr(module, "device_count") else 1


def _get_all(module: Any) -> list[torch.Tensor]:
    if hasattr(module, "get_rng_state_all"):
        return list(module.get_rng_state_all())
    return [module.get_rng_state()]


def _set_one(module: Any, state: torch.Tensor, index: int) -> None:
    if hasattr(module, "get_rng_state_all"):
        module.set_rng_state(state, index)
    else:
        module.set_rng_state(state)
