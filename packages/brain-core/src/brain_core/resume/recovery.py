"""What a run adds to its checkpointer, and what a resumed run restores and reports."""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_ckpt import CheckpointMismatchError, ckpt_recency
from brain_core.epochs import is_epoch_counter
from brain_core.resume.changes import ScriptChanges
from brain_core.resume.evaluation_epoch import is_of_the_model
from brain_core.resume.recoverables import (
    add_missing_modules,
    free_name,
    has_state,
    missing_states,
    unsaved_states,
)
from brain_core.resume.replay import RestoredGroups, undoing_changes
from brain_core.resume.report import Resumption, samples_in
from brain_core.resume.run_state import Progress
from brain_core.stage import Stage
from brain_dist import ddp_broadcast, gather_objects, get_world_size, if_main_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch

    from brain_ckpt import Checkpoint, Checkpointer
    from brain_core.options.run_options import RunOptions
    from brain_core.resume.run_state import RunState

__all__ = ["INTRA_EPOCH_CKPT_FLAG", "Recovery", "choose_places"]

logger = logging.getLogger(__name__)

INTRA_EPOCH_CKPT_FLAG = "brain_intra_epoch_ckpt"  # SpeechBrain's name for it in CKPT.yaml
TRAIN_LOADER = f"dataloader-{Stage.TRAIN.name}"
_SHOWN_WHEN_SKIPPED = ("rank_state",)


class Recovery:
    """Saves and restores one call of `Brain.fit` by a checkpointer.

    Parameters
    ----------
    checkpointer : Checkpointer
        Where to save, and where to resume from.
    options : RunOptions
        ``trusted`` and ``accept_changes`` are used.

    Attributes
    ----------
    restored : frozenset of str or None
        The names that the loaded checkpoint had a state for; None before one is loaded.
    """

    def __init__(self, checkpointer: Checkpointer, options: RunOptions) -> None:
        self._checkpointer = checkpointer
        self._options = options
        self._trusted = options.trusted
        self._train_set: Any = None
        self._changes: ScriptChanges | None = None
        self._epochs: Any = None  # of this call of fit
        self.restored: frozenset[str] | None = None
        self._checkpoint: Checkpoint | None = None  # that was loaded
        self._restored_groups = RestoredGroups({})

    def add_objects_of_fit(self, run: RunState, train_set: Any, epochs: Any) -> None:
        """Add what `fit` was given and needs in order to resume exactly."""
        self._epochs, self._train_set = epochs, train_set
        add = self._checkpointer.add_recoverable
        add("rank_state", run.rank_state, optional_load=True, per_rank=True)
        add("brain_setup", run.setup, optional_load=True)
        known = {id(obj) for obj in self._checkpointer.recoverables.values()}
        if id(train_set) not in known and hasattr(train_set, "state_dict"):
            per_rank = getattr(train_set, "state_is_per_rank", False)
            add(TRAIN_LOADER, train_set, optional_load=True, per_rank=per_rank)
        if id(epochs) not in known and has_state(epochs):
            name = free_name("counter", "fit", self._checkpointer.recoverables)
            add(name, epochs, optional_load=True)

    def restore_trainable(self, run: RunState) -> None:
        """Freeze and unfreeze parameters as the newest checkpoint says, before they are wrapped.

        Every rank calls it.
        """
        self._changes = ScriptChanges(self._checkpointer, run.setup, self._options, self._train_set)
        if run.starts_from == "checkpoint":
            text = ddp_broadcast(self._text_of_newest("brain_setup"))
            run.setup.load_text(text, is_of_this_fit=self._fit_of_newest() == run.fit)
            run.setup.restore()

    def recover(
        self,
        run: RunState,
        modules: Mapping[str, torch.nn.Module],
        places: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Load the newest checkpoint, if there is one, and log what it restored.

        Every rank calls it.

        Parameters
        ----------
        run : RunState
            The progress, a recoverable of the checkpointer.
        modules : mapping of str to torch.nn.Module
            All modules.
        places : mapping of str to mapping
            What `named_objects` returns.
        """
        self._add_missing(modules, places)
        assert self._changes is not None
        self._changes.note_optimizers()
        if run.starts_from == "memory":
            return
        if run.starts_from == "evaluated modules":
            self._restore_trained_modules(run)
            return
        saved_fit = self._fit_of_newest()
        if saved_fit > run.fit:
            self._skip(run, saved_fit)
            return
        checkpoint = self._load(run, is_of_this_fit=saved_fit == run.fit)
        if checkpoint is None:
            return
        if not is_end_of_epoch(checkpoint):
            self._correct_other_counters(checkpoint)
        names = set(self._checkpointer.recoverables)
        restored = {n for n in names & set(checkpoint.paramfiles) if self._changes.restores(n)}
        if run.rank_state.holds_rng:
            restored.add("rank_state")
        self.restored = frozenset(restored)
        report = Resumption(
            checkpoint=Path(checkpoint.path).name,
            epoch=run.epoch,
            batches=run.step if run.resumes_epoch else None,
            samples=self._samples_done(run.step) if run.resumes_epoch else None,
            optimizer_step=run.optimizer_step,
            restored=sorted(restored),
            missing=sorted(names - restored - {"brain_setup"}),  # as in older checkpoints
            attributes=run.rank_state.attributes.selected(),
            left_out=run.rank_state.attributes.left_out,
            changed=self._changes.described(checkpoint),
            inexact=[*_why_inexact(run), *self._options.why_inexact()],
            passed_over=self._checkpointer.passed_over,
        )
        logger.log(logging.WARNING if report.is_warning else logging.INFO, "%s", report)

    def _load(self, run: RunState, *, is_of_this_fit: bool) -> Checkpoint | None:
        """Load the newest checkpoint, as far as what the script has changed leaves it valid."""
        changes = self._changes
        assert changes is not None
        if is_of_this_fit:
            changes.check(self._epoch_inside())
        groups = RestoredGroups(self._checkpointer.recoverables)

        def load(is_restored: Callable[[str, Any], bool]) -> Checkpoint | None:
            return self._recover_if_possible(
                only=lambda name, obj: (
                    is_restored(name, obj) and (is_of_this_fit or name != TRAIN_LOADER)
                )
            )

        checkpoint: Checkpoint | None = changes.load(load)
        self._checkpoint, self._restored_groups = checkpoint, groups
        groups.loaded()
        run.setup.restore()
        changes.use_accepted_options()
        if changes.restarts_epoch:
            run.restart_epoch()
        return checkpoint

    def _epoch_inside(self) -> str | None:
        """Return the epoch inside which the newest checkpoint was saved; None at its end."""
        newest = self._checkpointer.find_checkpoint() if if_main_process() else None
        inside = newest is not None and not is_end_of_epoch(newest)
        try:
            text = self._text_of_newest("brain") if inside else None
            epoch = None if text is None else str(Progress.from_yaml(text).epoch)
        except (ValueError, KeyError, TypeError):
            epoch = "?"  # damaged, which the recovery will report
        return ddp_broadcast(epoch)

    @contextmanager
    def resuming_epoch(self) -> Iterator[None]:
        """Keep the state of the checkpoint, whatever the hooks in this block do once more."""
        checkpoint, changes = self._checkpoint, self._changes
        assert checkpoint is not None
        assert changes is not None

        def load(is_restored: Callable[[str, Any], bool]) -> None:
            self._checkpointer.load_checkpoint(checkpoint, only=is_restored, trusted=self._trusted)

        with undoing_changes(
            self._checkpointer.recoverables, lambda names: changes.load_again(names, load)
        ):
            yield

    def training_begins(self) -> None:
        """Let hooks add any parameter group from now on."""
        self._restored_groups.end()

    def restores(self, epochs: Any) -> bool:
        """Return whether an epoch counter knows from the checkpoint which epochs are left."""
        return any(
            obj is epochs and (self.restored is None or name in self.restored)
            for name, obj in self._checkpointer.recoverables.items()
        )

    def save_within_epoch(
        self, run: RunState, modules: Mapping[str, torch.nn.Module] | torch.nn.ModuleDict
    ) -> None:
        """Save a checkpoint that replaces the previous one within an epoch."""
        add_missing_modules(self._checkpointer, dict(modules.items()))  # a hook may unfreeze some
        run.sum_losses()
        self._checkpointer.save_and_keep_only(
            meta={INTRA_EPOCH_CKPT_FLAG: True},
            end_of_epoch=False,
            num_to_keep=1,
            ckpt_predicate=lambda c: INTRA_EPOCH_CKPT_FLAG in c.meta,
            verbosity=logging.DEBUG,
        )

    def close(self) -> None:
        """Publish a pending save."""
        self._checkpointer.close()

    def save_at_end(self, run: RunState) -> None:
        """Save the end of the fit, unless the recipe did, and delete what that replaces.

        A recipe that averages its last checkpoints would otherwise count the weights of the last
        epoch twice.
        """
        self._checkpointer.close()  # the list lacks a save that is pending
        newest = self._checkpointer.find_checkpoint()
        is_saved = newest is not None and is_end_of_epoch(newest) and run.is_saved
        if not ddp_broadcast(is_saved):
            self._checkpointer.save_and_keep_only(
                meta={INTRA_EPOCH_CKPT_FLAG: True},
                num_to_keep=1,
                ckpt_predicate=lambda c: INTRA_EPOCH_CKPT_FLAG in c.meta,
                verbosity=logging.DEBUG,
            )
            self._checkpointer.close()
        ends = [c for c in self._checkpointer.list_checkpoints() if is_end_of_epoch(c)]
        last_end = max(map(ckpt_recency, ends), default=0.0)
        self._checkpointer.delete_checkpoints(
            num_to_keep=0,
            ckpt_predicate=lambda c: INTRA_EPOCH_CKPT_FLAG in c.meta and ckpt_recency(c) < last_end,
            verbosity=logging.DEBUG,
        )

    def _add_missing(
        self,
        modules: Mapping[str, torch.nn.Module],
        places: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Add what training changes and the recipe did not add; warn of what is unknown."""
        add_missing_modules(self._checkpointer, modules)
        recoverables = self._checkpointer.recoverables
        for name, obj in missing_states(places, recoverables).items():
            self._checkpointer.add_recoverable(name, obj, optional_load=True)
        unsaved = unsaved_states(places, self._checkpointer.recoverables)
        if unsaved:
            logger.warning(
                "No checkpoint holds the state of %s. Where training changes it, a resumed run is "
                "not exact: call checkpointer.add_recoverable(name, object).",
                ", ".join(unsaved),
            )

    def _recover_if_possible(self, only: Any) -> Checkpoint | None:
        return self._checkpointer.recover_if_possible(only=only, trusted=self._trusted)

    def _fit_of_newest(self) -> int:
        """Return which call of `Brain.fit` the newest checkpoint belongs to; 1 without any."""
        text = self._text_of_newest("brain")
        try:
            fit = 1 if text is None else Progress.from_yaml(text).fit
        except (ValueError, KeyError, TypeError):
            fit = 1  # damaged, which the recovery will report
        return ddp_broadcast(fit)

    def _text_of_newest(self, name: str) -> str | None:
        """Return a file of the newest checkpoint on rank 0; None where it cannot be read."""
        newest = self._checkpointer.find_checkpoint() if if_main_process() else None
        path = None if newest is None else newest.paramfiles.get(name)
        try:
            return None if path is None else path.read_text("utf-8")
        except (OSError, ValueError):
            return None  # damaged, which the recovery will report

    def _skip(self, run: RunState, saved_fit: int) -> None:
        """Leave out a call of fit that was complete; show its script the checkpoint's model."""
        run.is_skipped = True
        logger.info(
            "Skipping fit %d of this script, which is complete: the newest checkpoint belongs to "
            "fit %d. Until that one resumes, the modules hold the checkpoint's weights.",
            run.fit,
            saved_fit,
        )
        try:
            self._recover_if_possible(
                only=lambda name, obj: is_of_the_model(obj) or name in _SHOWN_WHEN_SKIPPED
            )
        except CheckpointMismatchError as error:
            logger.warning(
                "The modules of fit %d do not fit those of fit %d: %s", saved_fit, run.fit, error
            )

    def _restore_trained_modules(self, run: RunState) -> None:
        """Undo what an evaluation has loaded since the last call of fit."""
        run.starts_from = "memory"
        if run.trained_tensors is not None:
            run.trained_tensors.restore()
            run.trained_tensors = None
            return
        checkpoint = self._recover_if_possible(only=lambda _, obj: is_of_the_model(obj))
        if checkpoint is not None:
            logger.info(
                "Resuming from the modules of %s, in place of those that were evaluated.",
                Path(checkpoint.path).name,
            )

    def _correct_other_counters(self, checkpoint: Checkpoint) -> None:
        """Undo what an incomplete epoch means to a counter that another call of fit counts with."""
        for name, obj in self._checkpointer.recoverables.items():
            if name in checkpoint.paramfiles and obj is not self._epochs and is_epoch_counter(obj):
                obj.current += 1

    def _samples_done(self, step: int) -> int | None:
        loader = self._checkpointer.recoverables.get(TRAIN_LOADER)
        return samples_in(loader, step * get_world_size())


def is_end_of_epoch(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint was saved at the end of an epoch."""
    return bool(checkpoint.meta.get("end-of-epoch", True))


def choose_places(checkpointer: Checkpointer, options: RunOptions) -> None:
    """Copy checkpoints to the mirror of the options; save those of a debug run elsewhere."""
    if options.debug and not options.debug_persistently:
        save_to_temporary_directory(checkpointer)
    elif options.mirror is not None:
        checkpointer.set_mirror(
            options.mirror,
            keep=checkpointer.mirror_keep,
            grace_seconds=options.mirror_grace_seconds,
        )


def save_to_temporary_directory(checkpointer: Checkpointer) -> None:
    """Save a debug run's checkpoints in a directory that is deleted with the checkpointer."""
    folder = tempfile.mkdtemp(prefix="brain-debug-")
    logger.info("Debug mode: checkpoints are saved in the temporary directory %s.", folder)
    checkpointer.checkpoints_dir = Path(folder)
    weakref.finalize(checkpointer, shutil.rmtree, folder, ignore_errors=True)


def _why_inexact(run: RunState) -> list[str]:
    """Return what keeps this run from having the bits of an undisturbed one."""
    of_this_rank = run.rank_state.changed_environment()
    if not run.rank_state.holds_rng:
        of_this_rank.append("no generator state was saved")
    of_rank = gather_objects(of_this_rank)
    reasons = list(of_rank[0])
    for rank, others in enumerate(of_rank[1:], 1):
        reasons += [f"{reason} on rank {rank}" for reason in others if reason not in of_rank[0]]
    if run.unfinished_window:
        reasons.append(
            f"the gradients of {run.unfinished_window} batches of a window were not saved"
        )
    return reasons
