"""The number of rows of any batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class BatchsizeGuesser:
    """Guesses the number of rows of a batch, and never raises.

    It tries, in this order: ``batch.batchsize``, ``batch.shape[0]``, the length of the first value
    of a mapping, that of the first element of a sequence; else 1. The method that worked is tried
    first for the next batch.

    Examples
    --------
    >>> import torch
    >>> guesser = BatchsizeGuesser()
    >>> guesser((torch.zeros(2, 3), torch.zeros(2))), guesser({"x": torch.zeros(5)}), guesser(7)
    (2, 5, 1)
    """

    def __init__(self) -> None:
        self.method: Callable[[Any], int] | None = None

    def __call__(self, batch: Any) -> int:
        """Guess the number of rows of `batch`."""
        if self.method is not None:
            try:
                return self.method(batch)
            except Exception:  # noqa: BLE001 - another method is tried
                self.method = None
        return self.find_suitable_method(batch)

    def find_suitable_method(self, batch: Any) -> int:
        """Try the methods in turn, and remember the one that worked."""
        for method in (
            self.attr_based,
            self.torch_tensor_bs,
            self.len_of_first_value,
            self.len_of_first,
            self.len_of_iter_first,
        ):
            try:
                size = method(batch)
            except Exception:  # noqa: BLE001, S112 - another method is tried
                continue
            self.method = method
            return size
        return self.fallback(batch)

    def attr_based(self, batch: Any) -> int:
        """Return ``batch.batchsize``."""
        return int(batch.batchsize)

    def torch_tensor_bs(self, batch: Any) -> int:
        """Return the first dimension of a tensor."""
        return int(batch.shape[0])

    def len_of_first_value(self, batch: Any) -> int:
        """Return the length of a mapping's first value."""
        return len(next(iter(batch.values())))

    def len_of_first(self, batch: Any) -> int:
        """Return the length of the first element."""
        return len(batch[0])

    def len_of_iter_first(self, batch: Any) -> int:
        """Return the length of the first item of an iterable."""
        return len(next(iter(batch)))

    def fallback(self, batch: Any) -> int:  # noqa: ARG002 - the signature of the others
        """Return 1."""
        return 1
