"""Numbers that a device computes, read after other work was queued behind them."""

from __future__ import annotations

import torch

__all__ = ["LateCopy"]


class LateCopy:
    """A tensor of the device on its way to memory that the processor can read.

    The copy is queued where this is made; the tensor may be changed after it. `read` waits for the
    copy alone, and not for the work that was queued after it: the device goes on.

    Parameters
    ----------
    tensor : torch.Tensor
        A few numbers.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if not tensor.is_cuda:
            self._values = tensor.clone()
            return
        self._values = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._values.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
        self._event.record(torch.cuda.current_stream(tensor.device))

    def read(self) -> list[float]:
        """Return the numbers."""
        if self._event is not None:
            self._event.synchronize()
        numbers: list[float] = self._values.reshape(-1).tolist()
        return numbers
