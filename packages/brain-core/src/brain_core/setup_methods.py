"""What `Brain` makes ready: optimizers, loaders, wrapped modules, the checkpoint to start from."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from brain_ckpt import check_space
from brain_core.epochs import check_epochs, epochs_left
from brain_core.loop.gradients import split_vectors
from brain_core.loop.padding_batches import pad_last_round
from brain_core.loop.stage_loader import (
    is_loader,
    length_of,
    make_resumable,
    make_stage_loader,
)
from brain_core.loop.train_step import check_no_closure
from brain_core.modules.compiling import compile_modules
from brain_core.modules.container import Modules, describe_parameters
from brain_core.modules.wrapping import RankWrapping
from brain_core.options.requirements import check_checkpointer, check_has_optimizer
from brain_core.options.seed import seed_per_rank
from brain_core.resume.attributes import attribute_owners
from brain_core.resume.evaluation_epoch import is_of_the_model, log_evaluated
from brain_core.resume.going_back import go_back
from brain_core.resume.next_fit import TensorCopies, carry_over
from brain_core.resume.recoverables import add_missing_modules, named_objects
from brain_core.resume.recovery import INTRA_EPOCH_CKPT_FLAG, Recovery
from brain_core.stage import Stage
from brain_core.stopping.failed_saves import FailedSaves
from brain_core.stopping.step_boundary import SaveSchedule
from brain_dist import HangWatch, ddp_broadcast, get_rank, unwrap_module

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch

    from brain_ckpt import Checkpointer
    from brain_core.callbacks.runner import CallbackRunner
    from brain_core.fit_state import FitState
    from brain_core.loop.profiler import StepProfiler
    from brain_core.options.run_options import RunOptions
    from brain_core.resume.evaluation_epoch import EvaluationEpoch
    from brain_core.resume.run_state import RunState
    from brain_core.stopping.stop import StopControl

__all__ = ["SetupMethods"]

logger = logging.getLogger(__name__)


class SetupMethods:
    """The methods of `Brain` that run before the first batch; a subclass may replace any."""

    if TYPE_CHECKING:  # set by Brain
        modules: Modules
        opt_class: Any
        optimizer: torch.optim.Optimizer
        optimizers_dict: dict[str, torch.optim.Optimizer] | None
        checkpointer: Checkpointer | None
        run_options: RunOptions
        test_only: bool
        debug: bool
        debug_batches: int
        debug_epochs: int
        deterministic: bool
        noprogressbar: bool
        optimizer_step_limit: int | None
        ckpt_interval_minutes: float
        ckpt_interval_steps: int
        ckpt_interval_patience: int
        stop_after_minutes: float
        hang_seconds: float
        tqdm_colored_bar: bool
        tqdm_barcolor: dict[str, str]
        device: str
        shard_evaluation: bool
        train_sampler: Any
        hparams: Any
        _run: RunState
        _fit_state: FitState
        _overrides: frozenset[str]
        _private: frozenset[str]
        _evaluation_epoch: EvaluationEpoch
        _callbacks: CallbackRunner
        _stop_control: StopControl
        _hang_watch: HangWatch | None
        profiler: StepProfiler | None

        def _count_steps(self, epochs: Any, batches: int | None) -> None: ...

        def _position(self, epochs: Any) -> dict[str, Any]: ...

    _former_opt_class: Any = None  # of the call of fit before
    _wrapping: RankWrapping | None = None  # None before the first fit
    _looks_after_batch = False  # whether hooks of a batch may have changed wrapped modules

    def on_fit_start(self) -> None:
        """Compile, wrap for several ranks, make optimizers, and recover the newest checkpoint.

        Called by `fit` on every rank. What an override adds to the checkpointer before it calls
        this is recovered here, too.
        """
        if self._wrapping is None:
            compile_modules(self.modules, self.run_options)
            self._wrapping = RankWrapping(
                self.modules, self.run_options, self.device, self.checkpointer
            )
        setup, recovery = self._run.setup, self._fit_state.recovery
        setup.begin(self.modules)
        if recovery is not None:
            recovery.restore_trainable(self._run)
        self._wrapping.wrap()
        with setup.as_at_start():
            self.init_optimizers()
        self._recover_newest()
        self._looks_after_batch = self._wrapping.is_needed_after_batch(self._overrides)

    def init_optimizers(self) -> None:
        """Make the optimizers, once modules are compiled and wrapped.

        Makes one over all parameters with ``opt_class``, and adds it to the checkpointer. An
        override for several of them fills ``self.optimizers_dict``.

        Raises
        ------
        ValueError
            If there is an ``opt_class`` and nothing to optimize.
        """
        if self.opt_class is None:
            return
        if not any(p.requires_grad for p in self.modules.parameters()):
            raise ValueError(
                "An optimizer needs at least one trainable parameter, got modules "
                f"{list(self.modules)} with none. Put the model into modules, or give no opt_class."
            )
        split = self.run_options.remove_vector_weight_decay
        parameters = split_vectors(self.modules) if split else list(self.modules.parameters())
        self.optimizer = self.opt_class(parameters)
        self.optimizers_dict = {"opt_class": self.optimizer}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable("optimizer", self.optimizer)

    def on_evaluate_start(self, max_key: str | None = None, min_key: str | None = None) -> None:
        """Load the model of the best checkpoint, or of the newest without a key.

        Nothing else is loaded, but until `evaluate` ends an `EpochCounter` in the checkpointer
        shows the epoch of that checkpoint.

        Parameters
        ----------
        max_key, min_key : str, optional
            The metric that was highest, or lowest.

        Raises
        ------
        ValueError
            If there are checkpoints and none has the metric.
        """
        if self.checkpointer is not None:
            add_missing_modules(self.checkpointer, dict(self.modules))
            trained_tensors = None
            if self._run.starts_from == "memory" and not ddp_broadcast(self._run.is_saved):
                others = self._callbacks.states_of_the_model
                trained_tensors = TensorCopies(self.modules, others)
            checkpoint = self.checkpointer.recover_if_possible(
                max_key=max_key,
                min_key=min_key,
                only=lambda _, obj: is_of_the_model(obj),
                trusted=self.run_options.trusted,
            )
            self._evaluation_epoch.show(self.checkpointer, checkpoint)
            log_evaluated(checkpoint, self.checkpointer, self._run)
            if checkpoint is not None and self._run.starts_from == "memory":
                self._run.trained_tensors = trained_tensors
                self._run.starts_from = "evaluated modules"

    def make_dataloader(
        self,
        dataset: Any,
        stage: Stage,
        ckpt_prefix: str | None = "dataloader-",
        **loader_kwargs: Any,
    ) -> Any:
        """Make a loader of a Dataset, as `fit` and `evaluate` do when they get one.

        In `Stage.TRAIN`, ``shuffle=True`` gives an order that depends on the seed and the epoch
        alone, and on several ranks batches are sharded. ``shuffle="keyed"`` gives another such
        order, in the same memory for any number of rows. Other stages see all data on each rank.

        Parameters
        ----------
        dataset : Dataset
            For a `DynamicItemDataset`, batches are `PaddedBatch` unless ``collate_fn`` is given.
        stage : Stage
            What the loader is for.
        ckpt_prefix : str or None
            The loader's position is saved under this and the stage's name; None: it is not saved.
        **loader_kwargs
            ``batch_size``, ``num_workers``, ``shuffle``, ``drop_last`` and all that torch's
            DataLoader takes. On a GPU, ``pin_memory=True`` gives batches that are on the device:
            the next one is copied while the current one is computed. ``device="cpu"`` leaves
            them where they are.

        Returns
        -------
        DataLoader
            A loader whose position a checkpoint can hold.

        Raises
        ------
        ValueError
            If both ``shuffle`` and a sampler are given.
        """
        training = stage is Stage.TRAIN
        loader, sampler = make_stage_loader(
            dataset,
            loader_kwargs,
            device=self.device,
            for_training=training,
            shard_evaluation=self.shard_evaluation,
        )
        if training:
            self.train_sampler = sampler
            samplers = loader_kwargs.get("sampler"), loader_kwargs.get("batch_sampler")
            self._fit_state.has_user_sampler = samplers != (None, None)
        if (
            self.checkpointer is not None
            and not self._fit_state.is_nested
            and ckpt_prefix is not None
            and hasattr(loader, "state_dict")
        ):
            self.checkpointer.add_recoverable(ckpt_prefix + stage.name, loader, optional_load=True)
        return loader

    @property
    def raw_modules(self) -> Modules:
        """The modules without their wrappers for several ranks."""
        return Modules({name: unwrap_module(module) for name, module in self.modules.items()})

    def print_trainable_parameters(self) -> None:
        """Log the number of parameters and how many of them are trainable."""
        logger.info(describe_parameters(type(self).__name__, self.modules))

    def _as_loader(self, data: Any, stage: Stage, kwargs: Mapping[str, Any]) -> Any:
        """Return a loader as it is, and a Dataset as a loader."""
        loader = data if is_loader(data) else self.make_dataloader(data, stage, **kwargs)
        if stage is Stage.TRAIN:
            saved = () if self.checkpointer is None else self.checkpointer.recoverables.values()
            is_saved = self.checkpointer is not None and not self._fit_state.is_nested
            loader = make_resumable(
                loader,
                self.run_options,
                device=self.device,
                saved=saved,
                is_saved=is_saved,
            )
            # A recipe's own fit_batch cannot be told that a batch has zero weight.
            pad = "fit_batch" not in self._overrides
            pad_last_round(loader, self.run_options, pad=pad)
        elif hasattr(loader, "counts_passes"):
            loader.counts_passes = False  # a restart would count them anew
        return loader

    def _begin_fit(self, train_set: Any, epochs: Iterable[int]) -> None:
        check_epochs(epochs)
        self._run.keeps_average = "update_average" in self._overrides
        batches = length_of(train_set)  # before a checkpoint is loaded: as when the run began
        fit_state = self._fit_state
        if not fit_state.is_nested:
            check_checkpointer(self.checkpointer, self.run_options)
            self._run.begin_fit()
            if self.checkpointer is not None:
                fit_state.recovery = Recovery(self.checkpointer, self.run_options)
                if self._run.starts_from == "checkpoint" and self._run.fit == 1:
                    go_back(self.checkpointer, self.run_options.resume_from)
                fit_state.recovery.add_objects_of_fit(self._run, train_set, epochs)
        recoverables = {} if self.checkpointer is None else self.checkpointer.recoverables
        former = {} if self._run.starts_from == "checkpoint" else dict(recoverables)
        self.on_fit_start()
        if not self._overrides & {"fit_batch", "optimizers_step"}:
            check_no_closure((self.optimizers_dict or {}).values())
        check_has_optimizer(self.modules, self._all_optimizers(), self._overrides)
        if self.opt_class is self._former_opt_class and self.checkpointer is not None:
            carry_over(former, self.checkpointer.recoverables)
        self._former_opt_class = self.opt_class
        self._run.setup.restore()
        if self._wrapping is not None and self._wrapping.order is not None:
            self._wrapping.order.apply()
        if not fit_state.is_nested and self.checkpointer is not None:
            owners = attribute_owners(self, self._private)
            self._run.rank_state.attributes.restore(owners)
            self._run.rank_state.attributes.begin(owners, self.checkpointer.recoverables.values())
            self.checkpointer.check_restorable()
            has_interval = self.ckpt_interval_minutes > 0 or self.ckpt_interval_steps > 0
            check_space(self.checkpointer, kept=1 + has_interval)
        if not fit_state.is_nested and not self._run.has_seeded_ranks:
            self._run.has_seeded_ranks = True
            if not self._run.rank_state.holds_rng:
                seed_per_rank(get_rank())  # until here all drew the same, to build the same model
        self._count_steps(epochs, batches)

    def _begin_epoch(self, train_set: Any, epoch: int) -> None:
        if self._run.resumes_epoch:  # on_stage_start has set them anew
            self._run.rank_state.attributes.restore(attribute_owners(self, self._private))
            self._run.setup.restore()
        if self._fit_state.recovery is not None:
            self._fit_state.recovery.training_begins()
        self._after_hook()
        self._add_unfrozen()
        self._run.begin_epoch(epoch)
        if self._fit_state.is_nested and self._fit_state.has_user_sampler:
            return  # its sampler counts the outer epochs; these are others
        parts: list[Any] = [train_set, getattr(train_set, "loader", None), self.train_sampler]
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def _add_unfrozen(self) -> None:
        """Save modules, too, that were frozen when `fit` began, and that a hook has unfrozen."""
        if self._fit_state.recovery is not None and self.checkpointer is not None:
            add_missing_modules(self.checkpointer, dict(self.modules))

    def _after_hook(self) -> None:
        """Bring wrapped modules into the same state on all ranks, whatever a hook did."""
        if self._wrapping is not None:
            self._wrapping.after_hook(self._all_optimizers())

    def _all_optimizers(self) -> list[torch.optim.Optimizer]:
        optimizers = {**(self.optimizers_dict or {}), "": getattr(self, "optimizer", None)}
        return [optimizer for optimizer in optimizers.values() if optimizer is not None]

    def _epochs_left(self, epochs: Iterable[int]) -> Iterator[int]:
        """Return the epochs to train."""
        run = self._run
        if run.is_skipped or self._fit_state.ends_early:
            return iter(())
        return epochs_left(epochs, begun=run.epochs_begun, **self._position(epochs))

    def _recover_newest(self) -> None:
        recovery = self._fit_state.recovery
        if recovery is not None:
            places = named_objects(vars(self), self.optimizers_dict or {}, vars(self.hparams))
            recovery.recover(self._run, dict(self.modules), places)

    @contextmanager
    def _saving_and_stopping(self) -> Iterator[None]:
        """Save and stop at the step boundaries of a fit; a nested fit has none."""
        if self._fit_state.is_nested:
            yield
            return
        recovery = self._fit_state.recovery
        schedule = SaveSchedule(self.ckpt_interval_minutes, self.ckpt_interval_steps)
        save = (
            (lambda: None)
            if recovery is None
            else lambda: recovery.save_within_epoch(self._run, self.modules)
        )

        def mark_unsaved() -> None:
            self._run.batches_saved = -1

        failed_saves = FailedSaves(
            self.ckpt_interval_patience,
            lambda meta: INTRA_EPOCH_CKPT_FLAG in meta,
            mark_unsaved,
        )
        try:
            with self._stop_control.during_fit(
                self.checkpointer,
                schedule,
                save,
                stop_after_minutes=self.stop_after_minutes,
                failed_saves=failed_saves,
            ) as self._fit_state.boundary:
                yield
                if recovery is not None and schedule.is_on and not self._run.is_skipped:
                    with failed_saves.surviving():  # one that is pending
                        recovery.close()
                    recovery.save_at_end(self._run)
        finally:
            self._fit_state.boundary = None
            if self.profiler is not None:
                self.profiler.stop()

    @contextmanager
    def _watching_for_hangs(self) -> Iterator[None]:
        """Log which rank waits where when no batch ends for `hang_seconds`."""
        if self.hang_seconds <= 0 or self._hang_watch is not None:
            yield
            return
        with HangWatch(self.hang_seconds) as watch:
            self._hang_watch = watch
            try:
                yield
            finally:
                self._hang_watch = None
