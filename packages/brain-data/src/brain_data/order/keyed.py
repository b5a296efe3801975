"""A random order that is computed index by index: a keyed permutation instead of a table.

`torch.randperm` needs 8 bytes a row and the time to shuffle all of them before the first batch. A
block cipher over the numbers 0 to n - 1 gives the row of any place at once, in constant memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from torch.utils.data import Sampler

from brain_data.order.seeding import DEFAULT_SEED, hash_integers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Sized

    from brain_data.order.plan import Ints

_ROUNDS = 12
_BLOCK_ROWS = 2048
_LARGEST = 1 << 62  # the halves, multiplied by 32 bits of a hash, fit into 64 bits
_MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_HALF_WORD = np.uint64(32)


class KeyedOrder:
    """A permutation of ``range(rows)`` chosen by (seed, epoch), of which any part can be computed.

    A place is written as two digits of base b, the smallest even number with b * b >= rows. Each of
    12 rounds of a balanced Feistel network adds a keyed hash of one digit to the other, modulo b.
    A result that is not below ``rows`` is put through the network again until it is (cycle
    walking); for large ``rows`` that is one in sqrt(rows) / 2. As the base is even, both even and
    odd permutations occur. With 12 rounds no statistic of a small set of rows differs from that of
    a uniform permutation in 200,000 seeds; with 6 they do.

    The order is not secret: the hash is fast, not cryptographic.

    Parameters
    ----------
    rows
        The number of rows, at most 2 ** 62.
    seed
        The seed of the run.
    epoch
        The epoch.

    References
    ----------
    J. Black and P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002: the network over
    digits of any base, and cycle walking. M. Luby and C. Rackoff, "How to Construct Pseudorandom
    Permutations from Pseudorandom Functions", SIAM J. Comput. 17 (1988). The hash is the finaliser
    of splitmix64: G. Steele, D. Lea and C. Flood, "Fast Splittable Pseudorandom Number Generators",
    OOPSLA 2014.

    Examples
    --------
    >>> order = KeyedOrder(10_000_000_000, seed=1, epoch=0)
    >>> len(order[5_000_000_000 : 5_000_000_004])
    4
    >>> sorted(KeyedOrder(5, seed=1, epoch=0)[:].tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, rows: int, seed: int, epoch: int) -> None:
        if rows > _LARGEST:
            raise ValueError(
                f"at most 2 ** 62 rows are required, got {rows!r}: split the data into several sets"
            )
        self._rows = rows
        base = math.isqrt(max(rows, 2) - 1) + 1
        self._base = np.uint64(base + base % 2)
        # The number of rows is part of the key: otherwise one more row would leave the order of
        # almost all others as it was.
        self._keys = [
            np.uint64(hash_integers(seed, epoch, rows, number)) for number in range(_ROUNDS)
        ]

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._rows

    @overload
    def __getitem__(self, places: int) -> int: ...

    @overload
    def __getitem__(self, places: slice | Sequence[int] | Ints) -> Ints: ...

    def __getitem__(self, places: Any) -> Any:
        """Return the row of a place, or those of a slice or of any places: ``[places]``, int64."""
        if isinstance(places, slice):
            part = range(self._rows)[places]
            return self._rows_at(np.arange(part.start, part.stop, part.step, dtype=np.int64))
        if isinstance(places, int):
            return int(self._rows_at(np.asarray([range(self._rows)[places]]))[0])
        return self._rows_at(np.asarray(places, dtype=np.int64))

    def __iter__(self) -> Iterator[int]:
        """Iterate over the rows, in blocks."""
        for low in range(0, self._rows, _BLOCK_ROWS):
            yield from self[low : low + _BLOCK_ROWS].tolist()

    def _rows_at(self, places: Ints) -> Ints:
        """Return the rows of places from 0 to ``rows - 1``: ``[places]``, int64."""
        rows = self._permuted(places.astype(np.uint64))
        while len(outside := np.flatnonzero(rows >= self._rows)):
            rows[outside] = self._permuted(rows[outside])
        permuted: Ints = rows.astype(np.int64)
        return permuted

    def _permuted(self, numbers: Ints) -> Ints:
        """Apply the network once to numbers below base * base: ``[numbers]``, uint64."""
        base = self._base
        left, right = np.divmod(numbers, base)
        mixed, shifted = np.empty_like(right), np.empty_like(right)
        for key in self._keys:
            np.add(right, key, out=mixed)
            for shift, factor in _MIX:
                np.right_shift(mixed, shift, out=shifted)
                np.bitwise_xor(mixed, shifted, out=mixed)
                np.multiply(mixed, factor, out=mixed)
            # The upper 32 bits, scaled to 0 ... base - 1.
            np.right_shift(mixed, _HALF_WORD, out=mixed)
            np.multiply(mixed, base, out=mixed)
            np.right_shift(mixed, _HALF_WORD, out=mixed)
            # Modulo the base: below it, the subtraction wraps around to a larger number.
            np.add(left, mixed, out=left)
            np.subtract(left, base, out=shifted)
            np.minimum(left, shifted, out=left)
            left, right = right, left
        permuted: Ints = left * base + right
        return permuted


class KeyedRandomSampler(Sampler[int]):
    """A random order that depends on (seed, epoch) only and is computed where it is used.

    It takes the same few kilobytes for any number of rows, and gives the row of any place at once.
    The order is another one than that of `ReproducibleRandomSampler`, see `KeyedOrder`. Call
    `set_epoch` before each epoch, or let the loader call it; otherwise the order repeats.

    Parameters
    ----------
    data_source
        The data to sample from; only its length is read.
    seed
        The base seed.
    epoch
        The first epoch.

    Examples
    --------
    >>> sampler = KeyedRandomSampler(range(5))
    >>> first = list(sampler)
    >>> first == list(sampler), sorted(first)
    (True, [0, 1, 2, 3, 4])
    """

    def __init__(self, data_source: Sized, seed: int = DEFAULT_SEED, epoch: int = 0) -> None:
        self.data_source = data_source
        self.seed = int(seed)
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order the next iteration yields."""
        self.epoch = epoch

    def order(self) -> KeyedOrder:
        """Return the epoch's rows, ``[rows]``; parts of it are computed when they are indexed."""
        return KeyedOrder(len(self.data_source), self.seed, self.epoch)

    def settings(self) -> dict[str, Any]:
        """Return what decides the order, for the fingerprint of a saved position."""
        return {
            "sampler": type(self).__name__,
            "seed": self.seed,
            "num_samples": len(self.data_source),
        }

    def __iter__(self) -> Iterator[int]:
        """Iterate over the rows of the epoch."""
        return iter(self.order())

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.data_source)
