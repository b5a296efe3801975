"""Any loader or iterable, with a position that can be saved and restored."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from brain_data.errors import ResumeError
from brain_data.fetching.generator_search import GeneratorSearch
from brain_data.loader.resumable_iterables import IterableSource, StreamSource
from brain_data.loader.resumable_rows import RowSource, is_distributed
from brain_data.order.generator_states import capture_global, restore_global
from brain_dist import ddp_broadcast, get_rank, get_world_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from brain_data.order.sharding import LastRound

logger = logging.getLogger(__name__)

FORMAT = 1


class ResumableLoader:
    """Wraps any loader or iterable, so that its position can be saved and restored exactly.

    After `load_state_dict` the next pass yields the batches that were left, in their order, or
    ``iter()`` raises `ResumeError`. How the position is reached depends on the loader:

    - `torch.utils.data.DataLoader` over a map-style dataset: only row numbers are found again, no
      row is loaded. On several ranks its batches are assigned to the ranks round-robin, unless its
      sampler does that already.
    - `torch.utils.data.DataLoader` over an IterableDataset: by the dataset's own state if that
      leads to the same batch, else by reading again.
    - A loader with ``state_dict`` and ``load_state_dict``: by its own state.
    - Any other loader or iterable, and one whose own state raises an error: by reading again.

    The state holds the random generators as they were when the pass began: Python's, NumPy's,
    torch's, those of devices, and those that the loader, its samplers and its dataset have as
    attributes. It also holds a checksum of rows or batches around the position, which is compared.
    What a dataset or a collate function draws for a batch is seeded by the position of the batch,
    so it is the same for any number of workers and after a restart. Generators that a dataset
    creates itself are restored without workers only: a worker has a copy of its own.

    Call order, for a training loop that restores random states itself::

        loader.load_state_dict(state)   # checks settings
        loader.set_epoch(epoch)         # optional: the epoch that is resumed
        batches = iter(loader)          # reaches the position; raises ResumeError
        restore_random_states()         # before or after iter(): it leaves them unchanged
        for batch in batches: ...       # the batches that were left

    On resuming, ``iter()`` leaves the global generators as they are. Otherwise it draws from them
    what torch's loader draws. With sharding, only those of rank 0 decide the order, and are drawn
    from; each fresh pass broadcasts their states.

    Parameters
    ----------
    loader
        The loader or iterable. Each pass calls ``iter()`` on it or on what it consists of.
    shard
        Whether to assign the batches of a map-style `DataLoader` to the ranks.
    last_round
        With sharding, how a round with fewer batches than ranks is completed, see
        `SaveableDataLoader`.
    elastic
        With sharding, whether to resume on a number of ranks for which no round begins at the
        position.
    resume_anyway
        If the same batches cannot be found again, warn and keep the position, at which rows may be
        repeated or missing, instead of raising `ResumeError`.
    device
        Copy each batch to this device before it is yielded.

    Attributes
    ----------
    loader
        The wrapped loader; further attributes are looked up there.
    is_sharded : bool
        Whether batches are assigned to the ranks. The state is then the same on all ranks;
        otherwise each rank has its own, see `state_is_per_rank`.

    Raises
    ------
    ResumeError
        From ``iter()`` or `load_state_dict`, if the remaining batches cannot be found.

    Examples
    --------
    >>> from torch.utils.data import DataLoader
    >>> loader = ResumableLoader(DataLoader(range(10), batch_size=4, shuffle=True))
    >>> batches = iter(loader)
    >>> first = next(batches)
    >>> resumed = ResumableLoader(DataLoader(range(10), batch_size=4, shuffle=True))
    >>> resumed.load_state_dict(loader.state_dict())
    >>> [batch.tolist() for batch in resumed] == [batch.tolist() for batch in batches]
    True
    """

    def __init__(
        self,
        loader: Any,
        *,
        shard: bool = True,
        last_round: LastRound = "split",
        elastic: bool = False,
        resume_anyway: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self.loader = loader
        self.device = None if device is None else torch.device(device)
        self._last_round: LastRound = last_round
        self._resume_anyway = resume_anyway
        self._source = _source_of(
            loader,
            shard=shard,
            last_round=last_round,
            elastic=elastic,
            resume_anyway=resume_anyway,
        )
        self._search = GeneratorSearch(
            loader,
            # A loader's own state holds its counters; to set them as well could break it.
            with_counters=not hasattr(loader, "state_dict"),
            # With sharding the state is one for all ranks, and what a dataset draws is not.
            without=[loader.dataset] if self._source.is_sharded else (),
        )
        self._pass: Any = None
        self._begin: dict[str, Any] | None = None  # the generators when the pass began
        self._resume: dict[str, Any] | None = None
        self._follows: dict[str, Any] | None = None  # a loaded state that had no batch left
        self._epoch = 0
        self._epoch_is_set = False
        self._has_logged = False

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the wrapped loader."""
        if name == "loader":  # not set yet, while this is unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    @property
    def last_round(self) -> LastRound:
        """How a round with fewer batches than ranks is completed; it may be set later."""
        return self._last_round

    @last_round.setter
    def last_round(self, last_round: LastRound) -> None:
        self._last_round = last_round
        if isinstance(self._source, RowSource):
            self._source.set_last_round(last_round)

    @property
    def is_sharded(self) -> bool:
        """Whether batches are assigned to the ranks."""
        return self._source.is_sharded

    @property
    def state_is_per_rank(self) -> bool:
        """Whether each rank has a state of its own, which has to be saved for each."""
        return get_world_size() > 1 and not self.is_sharded

    @property
    def holds_position(self) -> bool:
        """Whether a position was loaded, at which the next pass begins."""
        return self._resume is not None

    @property
    def is_padding(self) -> bool:
        """Whether the batch yielded last is a padding batch; see ``last_round="pad"``."""
        return bool(getattr(self._pass, "is_padding", False))

    @property
    def padding_batches(self) -> int:
        """How many ranks, this one or others, got a padding batch as their latest batch."""
        return int(getattr(self._pass, "padding_batches", 0))

    @property
    def epoch(self) -> int:
        """The epoch of the next pass, or of the present one."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; without it passes are counted.

        A loaded position is kept if its epoch is this one, and dropped if it is another. The
        samplers are not told: their epochs are the user's. An IterableDataset is told.
        """
        self._epoch = epoch
        self._epoch_is_set = True
        if isinstance(self._source, StreamSource):
            self._source.tells_epoch = True

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        return len(self._source)

    def __iter__(self) -> Iterator[Any]:
        """Begin a pass, at the loaded position or at the first batch."""
        resume, follows = self._next_position()
        self._log_sharding()
        begin, is_applied = self._begin_state(resume, follows)
        present = capture_global() if is_applied else None
        try:
            if is_applied:
                restore_global(begin["global"])
                self._search.restore(begin["held"])
            self._pass, batches = self._source.begin(
                self._epoch,
                _seed_of(begin),
                resume,
                follows=follows,
                device=self.device,
            )
        finally:
            if present is not None:
                restore_global(present)
        if resume is not None:
            self._search.restore(resume["present"])
            self._log_unrestored()
        self._begin = begin
        return batches

    def state_dict(self) -> dict[str, Any]:
        """Return the position, about 20 kB of JSON; a dataset's or loader's own state is added."""
        if self._resume is not None and self._is_pending():
            return self._resume
        state: dict[str, Any] = {
            "format": FORMAT,
            "kind": type(self._source).__name__,
            "pass_epoch": self._epoch,
            "present": self._search.capture(),
            **self._source.state(self._pass, self._epoch),
        }
        if self._begin is not None:
            state["begin"] = self._begin
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a saved position at the next ``iter()``.

        Raises
        ------
        ResumeError
            If the loader, its dataset or its settings have changed, naming what changed.
        """
        kind = type(self._source).__name__
        if state.get("format") != FORMAT or state.get("kind") != kind:
            raise ResumeError(
                f"the state of a {kind} of format {FORMAT} is required, got "
                f"{state.get('kind')!r} of format {state.get('format')!r}: give the loader that "
                "was used before, or let the epoch start again: Brain does with "
                "--accept_changes=data; elsewhere, do not load the loader's state"
            )
        try:
            self._source.check(state)
        except ValueError as error:
            if not self._resume_anyway:
                raise ResumeError(str(error)) from error
            logger.warning("Resuming anyway: %s", error)
        self._resume = state
        self._pass = self._begin = None
        self._epoch = state["pass_epoch"]
        self._epoch_is_set = False

    def _is_pending(self) -> bool:
        return self._resume is not None and self._resume["pass_epoch"] == self._epoch

    def _next_position(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Return the position to resume from, or the state of the pass that the next one follows.

        It also sets the epoch of the next pass.
        """
        resume, self._resume = self._resume, None
        is_set, self._epoch_is_set = self._epoch_is_set, False
        follows, self._follows = self._follows, None
        if resume is None:
            if self._pass is not None and self._pass.ended and not is_set:
                self._epoch += 1
            return None, follows
        if resume["pass_epoch"] != self._epoch:
            return None, resume if resume["finished"] else None
        if resume["ended"] and not is_set:
            self._epoch += 1
            return None, resume
        if "begin" not in resume:
            return None, resume
        self._follows = resume if resume["finished"] else None
        return resume, None

    def _begin_state(
        self, resume: dict[str, Any] | None, follows: dict[str, Any] | None
    ) -> tuple[dict[str, Any], bool]:
        """Return the generators at the beginning of the pass, and whether they are to be set."""
        if resume is not None:
            return resume["begin"], True
        if follows is not None:
            self._search.restore(follows["present"])
        begin = self._capture()
        if not self.is_sharded:
            return begin, False
        return ddp_broadcast(begin), get_rank() > 0

    def _capture(self) -> dict[str, Any]:
        return {"global": capture_global(), "held": self._search.capture()}

    def _log_sharding(self) -> None:
        if self._has_logged or get_world_size() == 1:
            return
        self._has_logged = True
        name = type(self.loader).__name__
        if self.is_sharded:
            logger.info(
                "The batches of the %s are assigned to %d ranks round-robin: a step has the same "
                "samples on any number of ranks. Pass shard=False to give each rank all batches",
                name, get_world_size(),
            )  # fmt: skip
        elif not isinstance(self._source, RowSource) and not _samples_by_rank(self.loader):
            logger.warning(
                "%s cannot be sharded among ranks: each rank reads all of it unless it selects a "
                "part by its rank",
                name,
            )

    def _log_unrestored(self) -> None:
        """Log the generators of a dataset that are not restored."""
        if not isinstance(self._source, RowSource):
            return
        if self.loader.num_workers or self.is_sharded:
            paths = GeneratorSearch(self.loader.dataset).paths()
            if paths:
                logger.warning(
                    "The dataset holds random generators (%s) whose states are not restored%s: "
                    "draw from the global ones, which are seeded for each batch",
                    ", ".join(path.removeprefix(".") for path in paths),
                    ", since each worker has a copy" if self.loader.num_workers else "",
                )


def _source_of(
    loader: Any, *, shard: bool, last_round: LastRound, elastic: bool, resume_anyway: bool
) -> RowSource | StreamSource | IterableSource:
    # A subclass that iterates in another way is read as it is.
    is_plain = (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ is DataLoader.__iter__
        and getattr(loader, "in_order", True)
    )
    if not is_plain:
        return IterableSource(loader, resume_anyway=resume_anyway)
    if isinstance(loader.dataset, IterableDataset):
        return StreamSource(loader, resume_anyway=resume_anyway)
    return RowSource(
        loader,
        shard=shard,
        elastic=elastic,
        last_round=last_round,
        resume_anyway=resume_anyway,
    )


def _samples_by_rank(loader: Any) -> bool:
    return is_distributed(getattr(loader, "batch_sampler", None)) or is_distributed(
        getattr(loader, "sampler", None)
    )


def _seed_of(begin: dict[str, Any]) -> int:
    """Return the seed of a pass: a hash of torch's and of the loader's own generators."""
    text = json.dumps([begin["global"]["torch"], begin["held"]["generators"]], sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
