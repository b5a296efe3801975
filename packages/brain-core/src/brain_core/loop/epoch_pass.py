"""One pass over a loader: an epoch's training, its validation, or a test."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from brain_core.loop.batches import Batches
from brain_core.loop.progress_bar import BarOptions, ProgressBar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from typing_extensions import Self

    from brain_core.loop.profiler import StepProfiler
    from brain_core.loop.running_mean import LossMean
    from brain_dist import HangWatch

__all__ = ["EpochPass", "evaluating"]

_NO_BAR = BarOptions()


class EpochPass:
    """The batches of one pass from a position onwards, with mean loss, bar and profiler.

    ::

        with EpochPass(loader, mean=LossMean(), bar=BarOptions(enable=True)) as epoch_pass:
            for batch in epoch_pass:
                epoch_pass.add_loss(train_on(batch))
                epoch_pass.batch_done()

    Parameters
    ----------
    loader : iterable
        Yields the batches. Its iterator is created here.
    mean : LossMean
        The mean that losses are added to.
    update : callable, optional
        A recipe's own ``update_average(loss, average)``, used instead of the mean.
    figure : str
        The name of the mean, shown next to the bar.
    bar : BarOptions
        What the bar shows; by default there is none.
    done : int
        The number of batches of the pass that are already done.
    limit : int, optional
        End after this many batches.
    profiler : StepProfiler, optional
        Counts the batches.
    hang_watch : HangWatch, optional
        Is told when a batch ends.
    watch : callable, optional
        Takes the loader's iterator and returns one that gives the same batches.
    """

    def __init__(
        self,
        loader: Any,
        *,
        mean: LossMean,
        update: Callable[[Any, float], float] | None = None,
        figure: str = "loss",
        bar: BarOptions = _NO_BAR,
        done: int = 0,
        limit: int | None = None,
        profiler: StepProfiler | None = None,
        hang_watch: HangWatch | None = None,
        watch: Callable[[Iterator[Any]], Iterator[Any]] | None = None,
    ) -> None:
        self.mean = mean
        self._update = update
        self._batches: Batches[Any] = Batches(loader, limit, watch)
        self._profiler = profiler
        self._hang_watch = hang_watch
        self._shown_mean = mean.recent_mean
        self._bar = ProgressBar(
            bar,
            batches=loader,
            initial=done,
            figures=lambda: {figure: f"{self._shown_mean():.4g}"},
        )

    def __enter__(self) -> Self:
        """Return the pass itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the bar and drop the loader's iterator, also after an exception."""
        self._shown_mean = self.mean.mean
        try:
            self._bar.__exit__(*exception)
        finally:
            self._batches.close()

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the batches."""
        return self._batches

    @property
    def is_padding(self) -> bool:
        """Whether the current batch is a copy of another rank's, with zero weight."""
        return self._batches.is_padding

    @property
    def padding_batches(self) -> int:
        """The number of ranks whose current batch is such a copy."""
        return self._batches.padding_batches

    def has_next(self) -> bool:
        """Return whether another batch follows, which fetches it."""
        return self._batches.has_next()

    def skip(self, count: int) -> None:
        """Read ``count`` batches and drop them."""
        self._batches.skip(count)

    def add_loss(self, loss: Any) -> None:
        """Add a batch's loss to the mean."""
        if self._update is None:
            self.mean.add(loss)
        else:
            self.mean.assign(self._update(loss, self.mean.mean()))

    def batch_done(self) -> None:
        """Advance the bar and the profiler by one batch."""
        self._bar.step()
        if self._profiler is not None:
            self._profiler.step()
        if self._hang_watch is not None:
            self._hang_watch.step()


@contextmanager
def evaluating(modules: torch.nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode; restore training mode if an exception is raised."""
    were_training = [module for module in modules.modules() if module.training]
    modules.eval()
    try:
        yield
    except BaseException:
        for module in were_training:
            module.training = True
        raise
