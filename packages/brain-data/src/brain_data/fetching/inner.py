"""torch's DataLoader as the part of a loader that fetches batches, with or without workers."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from brain_data.batch.device import prefetch_to_device
from brain_data.fetching.iteration import CountingIterator
from brain_data.fetching.worker import (
    BatchFetcher,
    RequestSampler,
    WorkerInit,
    WorkerProgress,
    identity,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from brain_data.fetching.iteration import IndexedPass
    from brain_data.fetching.worker import FetchRequest

_FORWARDED_OPTIONS = (
    "num_workers",
    "pin_memory",
    "pin_memory_device",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
)


def make_inner_loader(options: DataLoader[Any], dataset: Any, **kwargs: Any) -> DataLoader[Any]:
    """Return a loader of torch's with the workers of another one, for batches that are collated."""
    forwarded = {
        name: getattr(options, name) for name in _FORWARDED_OPTIONS if hasattr(options, name)
    }
    if not forwarded.get("pin_memory_device"):
        forwarded.pop("pin_memory_device", None)  # torch warns if it is given
    if options.num_workers:
        context = options.multiprocessing_context or multiprocessing
        is_child = context.get_start_method() != "forkserver"
        forwarded["worker_init_fn"] = WorkerInit(options.worker_init_fn, is_child=is_child)
    return DataLoader(dataset, batch_size=None, collate_fn=identity, **{**forwarded, **kwargs})


class RowLoader:
    """Fetches the batches of passes over a map-style dataset.

    It holds the workers, which may persist from pass to pass, and no reference to the loader whose
    options it uses: in a cycle the workers of a deleted loader would live until the next garbage
    collection.
    """

    def __init__(self) -> None:
        self._inner: DataLoader[Any] | None = None
        self._progress: WorkerProgress | None = None
        self._pass: IndexedPass | None = None

    def iterate(
        self,
        epoch_pass: IndexedPass,
        options: DataLoader[Any],
        *,
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Any]:
        """Return an iterator over the batches of a pass.

        Parameters
        ----------
        epoch_pass
            The rows of each batch.
        options
            The loader whose dataset, collate function and workers are used.
        device
            Copy batches to this device.
        generator
            Draw the workers' base seed from this generator instead of that of ``options``.
        """
        self._pass = epoch_pass
        if epoch_pass.order_is_known:
            epoch_pass.prepare()  # an unreachable position raises before workers start
        batches = iter(self._loader(options, batched=epoch_pass.is_batched, generator=generator))
        # Otherwise after torch's own draw from the global generator, as in torch's loader.
        epoch_pass.prepare()
        if device is not None:
            batches = prefetch_to_device(batches, device)  # type: ignore[assignment]
        return CountingIterator(epoch_pass, batches, self._progress)

    def starts_workers(self, options: DataLoader[Any]) -> bool:
        """Return whether the next pass starts new workers, for which torch draws a base seed."""
        return self._inner is None or not options.persistent_workers

    def _loader(
        self, options: DataLoader[Any], *, batched: bool, generator: torch.Generator | None
    ) -> DataLoader[Any]:
        if not self.starts_workers(options):
            assert self._inner is not None
            return self._inner
        self._progress = WorkerProgress(options.num_workers) if options.num_workers else None
        fetcher = BatchFetcher(
            options.dataset, options.collate_fn, batched=batched, progress=self._progress
        )
        sampler = RequestSampler(self._begin_requests, self._num_rounds)
        kwargs = {} if generator is None else {"generator": generator}
        self._inner = make_inner_loader(options, fetcher, sampler=sampler, **kwargs)
        return self._inner

    def _begin_requests(self) -> Iterator[FetchRequest]:
        assert self._pass is not None  # set before the inner loader is iterated
        return self._pass.requests()

    def _num_rounds(self) -> int:
        assert self._pass is not None
        return self._pass.num_rounds
