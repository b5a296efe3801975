"""How a run is saved, stopped and gone on from."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_ckpt import ckpt_recency, mark_as_loader, mark_as_saver
from brain_dist import gather_objects, get_world_size, if_main_process, sum_over_ranks

from ._environment import differences, record_environment
from ._losses import LossMean
from ._options import RunOptions
from ._recoverables import free_name, has_state, missing_modules, missing_states, unsaved_states
from ._report import Resumption, samples_in
from ._resume import Progress
from ._setup import redirect_to_temporary
from ._stage import Stage
from ._stopping import StoppablePasses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from brain_ckpt import Checkpointer

    from ._elastic import StepSize

__all__ = ["CheckpointedPasses"]

logger = logging.getLogger(__name__)

# Attributes of a Brain that are saved in ways of their own, or hold no state.
_NOT_RECOVERABLE = {f.name for f in fields(RunOptions)} | {
    "checkpointer",
    "hparams",
    "modules",
    "optimizers_dict",
    "train_sampler",  # the loader's position holds it
}
INTRA_EPOCH_CKPT_FLAG = "brain_intra_epoch_ckpt"  # SpeechBrain's name for it in CKPT.yaml


class CheckpointedPasses(StoppablePasses):
    """The part of `Brain` that puts its progress into checkpoints, and takes it from there."""

    checkpointer: Checkpointer | None
    hparams: Any
    run_options: RunOptions
    device: str
    _losses_of_all_ranks: Sequence[float] = (0.0, 0)  # the epoch's sum and count when it is saved
    _step_size: StepSize
    _epoch: int | None
    _epochs_done: int | None  # up to which a plain iterable of epochs is skipped
    _restored: frozenset[str] | None = None  # the names that the last checkpoint had a state for
    _unfinished_window = 0  # batches of a window whose gradients the last checkpoint did not hold

    @mark_as_saver
    def _save(self, path: str | Path) -> None:
        alone = (self._train_mean.total, self._train_mean.count)
        total, count = self._losses_of_all_ranks if get_world_size() > 1 else alone
        inside = self._window_batches % self.grad_accumulation_factor  # more: a step of its own
        progress = Progress(
            step=self.step,
            optimizer_step=self.optimizer_step,
            epoch=self._epoch,
            world_size=get_world_size(),
            loss_total=total,
            loss_count=int(count),
            nonfinite_count=self.nonfinite_count,
            avg_train_loss=float(self.avg_train_loss),
            micro_batches_per_step=self._step_size.now(self.grad_accumulation_factor),
            grad_accumulation_factor=self.run_options.grad_accumulation_factor,
            window_batches=inside,
        )
        if inside:
            logger.warning(
                "A checkpoint is saved inside an accumulation window: the gradients of its first "
                "%d batches are not in it. Save where should_step is true.",
                inside,
            )
        Path(path).write_text(progress.to_yaml(), encoding="utf-8")

    @mark_as_loader
    def _recover(self, path: str | Path, end_of_epoch: bool) -> None:
        progress = Progress.from_yaml(Path(path).read_text(encoding="utf-8"))
        size = self._step_size
        factor = size.recover(progress, elastic=self.run_options.elastic)
        if factor is not None:
            self.grad_accumulation_factor = factor
        self.optimizer_step = progress.optimizer_step
        self._epoch = progress.epoch
        self._resumes_epoch = not end_of_epoch
        self._unfinished_window = progress.window_batches
        if progress.epoch is not None:
            self._epochs_done = progress.epoch - (not end_of_epoch)
        if end_of_epoch:
            self._forget_epoch()
            return
        self.step = size.batches_done(progress, self.grad_accumulation_factor)
        self.nonfinite_count = progress.nonfinite_count
        if if_main_process():  # on as many ranks as before, each has its own in its RankState
            self._train_mean = LossMean(progress.loss_total, progress.loss_count)
        own = self._overrides("update_average")
        self._own_average = progress.avg_train_loss if own else None

    def _join_checkpointer(self, checkpointer: Checkpointer) -> None:
        options = self.run_options
        if options.debug and not options.debug_persistently:
            redirect_to_temporary(checkpointer)
        checkpointer.add_recoverable("brain", self)

    def _add_recoverables_of_fit(self, train_set: Any, epochs: Any) -> None:
        """Add what `fit` needs to go on exactly, and was given."""
        self._restored = None
        if self.checkpointer is None:
            return
        self.checkpointer.add_recoverable(
            "rank_state", self._rank_state, optional_load=True, per_rank=True
        )
        known = {id(obj) for obj in self.checkpointer.recoverables.values()}
        if id(train_set) not in known and hasattr(train_set, "state_dict"):
            self.checkpointer.add_recoverable(
                f"dataloader-{Stage.TRAIN.name}", train_set, optional_load=True
            )
        if id(epochs) not in known and has_state(epochs):
            name = free_name("counter", "fit", self.checkpointer.recoverables)
            self.checkpointer.add_recoverable(name, epochs, optional_load=True)

    def _add_forgotten(self) -> None:
        """Add what training changes and the recipe did not think of; say what cannot be told."""
        assert self.checkpointer is not None, "only a run that is saved forgets something"
        places = self._places()
        self._add_forgotten_modules()
        for name, obj in missing_states(places, self.checkpointer.recoverables).items():
            self.checkpointer.add_recoverable(name, obj, optional_load=True)
        unsaved = unsaved_states(places, self.checkpointer.recoverables)
        if unsaved:
            logger.warning(
                "No checkpoint holds the state of %s. Where training changes it, a resumed run is "
                "not exact: call checkpointer.add_recoverable(name, object).",
                ", ".join(unsaved),
            )

    def _add_forgotten_modules(self) -> None:
        assert self.checkpointer is not None, "asked before"
        forgotten = missing_modules(dict(self.modules), self.checkpointer.recoverables)
        for name, module in forgotten.items():
            self.checkpointer.add_recoverable(name, module, optional_load=True)

    def _places(self) -> dict[str, dict[str, Any]]:
        """Return all that a recipe has given names to, by where it did."""
        attributes = {
            name: obj
            for name, obj in vars(self).items()
            if not name.startswith("_") and name not in _NOT_RECOVERABLE
        }
        return {
            "self": attributes,
            "optimizers": dict(self.optimizers_dict or {}),
            "hparams": vars(self.hparams),
        }

    def _save_intra_epoch_ckpt(self) -> None:
        if self.checkpointer is None:
            return
        self._losses_of_all_ranks = sum_over_ranks([self._train_mean.total, self._train_mean.count])
        self.checkpointer.save_and_keep_only(
            meta={INTRA_EPOCH_CKPT_FLAG: True},
            end_of_epoch=False,
            num_to_keep=1,
            ckpt_predicate=lambda c: INTRA_EPOCH_CKPT_FLAG in c.meta,
            verbosity=logging.DEBUG,
        )

    def _drop_superseded(self) -> None:
        """Delete the last checkpoint within an epoch, where one of an epoch's end came after it.

        A recipe that averages its last checkpoints would count that epoch's weights twice.
        """
        border = self._border
        if self.checkpointer is None or border is None or not border.schedule.is_on:
            return
        self._publish_last()  # else the list lacks what is still being written
        ends = [c for c in self.checkpointer.list_checkpoints() if c.meta.get("end-of-epoch", True)]
        newest = max(map(ckpt_recency, ends), default=0.0)
        self.checkpointer.delete_checkpoints(
            num_to_keep=0,
            ckpt_predicate=lambda c: INTRA_EPOCH_CKPT_FLAG in c.meta and ckpt_recency(c) < newest,
            verbosity=logging.DEBUG,
        )

    def _recover_newest(self) -> None:
        """Load the newest checkpoint, if there is one, and say what that restored."""
        if self.checkpointer is None:
            return
        self._add_forgotten()
        checkpoint = self.checkpointer.recover_if_possible()
        if checkpoint is None:
            return
        names = set(self.checkpointer.recoverables)
        restored = names & set(checkpoint.paramfiles)
        if self._rank_state.holds_rng:
            restored.add("rank_state")
        self._restored = frozenset(restored)
        report = Resumption(
            checkpoint=Path(checkpoint.path).name,
            epoch=self._epoch,
            batches=self.step if self._resumes_epoch else None,
            samples=self._samples_done() if self._resumes_epoch else None,
            optimizer_step=self.optimizer_step,
            restored=sorted(restored),
            missing=sorted(names - restored),
            inexact=self._why_inexact(),
            passed_over=self.checkpointer.passed_over,
        )
        logger.log(logging.WARNING if report.is_worrying else logging.INFO, "%s", report)

    def _samples_done(self) -> int | None:
        assert self.checkpointer is not None, "it was loaded from"
        loader = self.checkpointer.recoverables.get(f"dataloader-{Stage.TRAIN.name}")
        return samples_in(loader, self.step * get_world_size())

    def _why_inexact(self) -> list[str]:
        """Say what keeps this run from having the bits of one that was not disturbed."""
        present, saved = record_environment(self.device), self._rank_state.saved_environment
        own = [] if saved is None else differences(saved, present)
        if not self._rank_state.holds_rng:
            own.append("no random state was saved")
        of_ranks = gather_objects(own)
        reasons = list(of_ranks[0])
        for rank, others in enumerate(of_ranks[1:], 1):
            reasons += [f"{one} on rank {rank}" for one in others if one not in of_ranks[0]]
        if self._unfinished_window:
            reasons.append(
                f"the gradients of {self._unfinished_window} batches of a window were not saved"
            )
        return reasons
