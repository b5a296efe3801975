"""A flag that a device computes, read after other work was queued behind it."""

from __future__ import annotations

import torch

__all__ = ["LateFlag"]


class LateFlag:
    """A scalar of the device on its way to memory that the processor can read.

    The copy is queued where the flag is made. `read` waits for that copy alone, and not for the
    work that was queued after it: the device goes on.

    Parameters
    ----------
    flag : torch.Tensor
        A scalar; not zero stands for true.
    """

    def __init__(self, flag: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._value = flag
        if flag.is_cuda:
            self._value = torch.empty_like(flag, device="cpu", pin_memory=True)
            self._value.copy_(flag, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
            self._event.record(torch.cuda.current_stream(flag.device))

    def read(self) -> bool:
        """Return the flag."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._value)
