"""`Brain`: a training loop behind two methods."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from brain_core.batch_methods import BatchMethods
from brain_core.callbacks.runner import CallbackRunner
from brain_core.fit_state import FitState, RunCount, find_overrides
from brain_core.loop.evaluation import evaluate_batches
from brain_core.loop.profiler import StepProfiler
from brain_core.loop.stage_loader import check_not_empty
from brain_core.modules.container import HParams, as_modules
from brain_core.options.compute import choose_compute
from brain_core.options.determinism import deterministic_algorithms
from brain_core.options.requirements import check_opt_class
from brain_core.options.run_options import RunOptions
from brain_core.resume.elastic import StepSize
from brain_core.resume.environment import record_environment
from brain_core.resume.evaluation_epoch import EvaluationEpoch
from brain_core.resume.position import open_training_pass
from brain_core.resume.recovery import choose_places
from brain_core.resume.report import nothing_to_train
from brain_core.resume.run_state import RunState
from brain_core.setup_methods import SetupMethods
from brain_core.stage import Stage
from brain_core.stage_methods import StageMethods
from brain_core.stopping.stop import StopControl
from brain_dist import (
    World,
    collective_call,
    get_rank,
    get_world_size,
    propagate_failures,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from brain_ckpt import Checkpointer
    from brain_core.callbacks.base import Callback

__all__ = ["Brain"]

logger = logging.getLogger(__name__)
_NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


class Brain(SetupMethods, BatchMethods, StageMethods):
    """A PyTorch training loop behind `compute_forward` and `compute_objectives`.

    Subclass it, define these two methods, and call `fit`, whose docstring lists the order in which
    all methods are called. Each may be overridden. Names, arguments and checkpoints are those of
    SpeechBrain 1.1.

    Parameters
    ----------
    modules : dict of str to torch.nn.Module, optional
        What is trained, evaluated and moved to the device. Read it as ``self.modules.name``.
    opt_class : callable, optional
        Makes an optimizer from a list of parameters, for instance ``lambda p: SGD(p, lr=0.1)``.
        For more than one optimizer, override `init_optimizers`.
    hparams : dict, optional
        Anything the recipe reads, as ``self.hparams.name``. Run options in it count, too.
    run_opts : RunOptions or dict, optional
        How to run: device, precision, checkpoint interval and so on; see `RunOptions`. They take
        precedence over those in ``hparams``. Each can be read as an attribute: ``self.device``.
    checkpointer : brain_ckpt.Checkpointer, optional
        Where the run is saved, and resumed from when `fit` is called again. Optimizers, position,
        generators and counters are added to it.
    callbacks : iterable of Callback
        Called in this order, each time after the hook of this class: `EMA`, `LRSchedule` and so on.

    Attributes
    ----------
    step : int
        Batches of the pass so far, the current one included.
    optimizer_step : int
        Accumulation windows that have been stepped on since training began.
    avg_train_loss : float
        Mean of the epoch's finite losses on this rank.
    nonfinite_count : int
        Batches of the epoch with a loss or gradient that was not finite.
    is_padding : bool
        Whether the batch is a copy of another rank's, processed with zero weight so that all ranks
        stay in step. Metrics that a recipe keeps should leave it out.
    train_sampler : object or None
        Its ``set_epoch`` is called before each epoch.
    stage_stats : dict of str to object
        The figures of the present or the last pass, for callbacks: ``loss``, and the metrics that a
        recipe adds in `on_stage_end`, before it saves a checkpoint.

    Raises
    ------
    ValueError
        For an unknown option, or a value or combination that cannot work.
    TypeError
        For an argument of another type, such as an optimizer in the place of ``opt_class``.

    Examples
    --------
    >>> class SimpleBrain(Brain):
    ...     def compute_forward(self, batch, stage):
    ...         return self.modules.model(batch[0] * self.hparams.scalar)
    ...
    ...     def compute_objectives(self, predictions, batch, stage):
    ...         return torch.nn.functional.l1_loss(predictions, batch[0])
    >>> modules = {"model": torch.nn.Linear(in_features=10, out_features=10)}
    >>> optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    >>> brain = SimpleBrain(modules, optimizer, {"scalar": 5}, {"device": "cpu"})
    >>> brain.fit(range(1), ([torch.rand(10, 10), torch.rand(10, 10)],))
    """

    step = RunCount()
    optimizer_step = RunCount()
    nonfinite_count = RunCount()
    grad_accumulation_factor = RunCount()

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module] | None = None,
        opt_class: Any = None,
        hparams: Mapping[str, Any] | None = None,
        run_opts: RunOptions | Mapping[str, Any] | None = None,
        checkpointer: Checkpointer | None = None,
        *,
        callbacks: Iterable[Callback] = (),
    ) -> None:
        check_opt_class(opt_class)
        options = RunOptions.resolve(run_opts, hparams)
        step_size = StepSize(get_world_size(), options.grad_accumulation_factor)
        self._run = RunState(step_size, options, lambda: record_environment(self.device))
        for name, value in {**options.as_dict(), **choose_compute(options)._asdict()}.items():
            setattr(self, name, value)
        self.run_options = options
        self.opt_class = opt_class
        self.checkpointer = checkpointer
        self.hparams = HParams(**(hparams or {}))
        self.distributed_launch = World.from_environment().launched
        self.rank = get_rank()
        self.modules = as_modules(modules, self.device)
        self.print_trainable_parameters()
        if not self.tqdm_colored_bar:
            self.tqdm_barcolor = dict.fromkeys(self.tqdm_barcolor, "")
        self.profiler = StepProfiler.from_options(options, self.hparams)
        self.train_sampler = None
        self.optimizers_dict = None
        self.stage_stats: dict[str, Any] = {}

        self._overrides = find_overrides(type(self), Brain)
        self._fit_state = FitState()
        self._callbacks = CallbackRunner(callbacks, self)
        self._stop_control = StopControl()
        self._hang_watch = None
        self._evaluation_epoch = EvaluationEpoch()
        self._private = frozenset(vars(self)) - {f.name for f in fields(options)} | {"_private"}
        if checkpointer is not None:
            choose_places(checkpointer, options)
            checkpointer.add_recoverable("brain", self._run)
            self._callbacks.add_to(checkpointer)

    def fit(
        self,
        epoch_counter: Iterable[int],
        train_set: Any,
        valid_set: Any = None,
        progressbar: bool | None = None,
        train_loader_kwargs: Mapping[str, Any] = _NO_ARGUMENTS,
        valid_loader_kwargs: Mapping[str, Any] = _NO_ARGUMENTS,
    ) -> None:
        """Train, epoch by epoch, from where the newest checkpoint left off.

        These are the hooks in the order in which they are called::

            make_dataloader              for a set that is not a loader yet
            on_fit_start                 compile, wrap,
                init_optimizers          ... and recover the newest checkpoint
            for each epoch:
                on_stage_start           TRAIN
                zero_grad
                    freeze_optimizers
                for each batch, from where the checkpoint left off:
                    fit_batch
                        on_fit_batch_start
                        compute_forward
                        compute_objectives
                        loss_weight          if overridden
                        check_loss_isfinite
                        optimizers_step      when the window is full, or the data ends
                            freeze_optimizers
                            check_gradients  with skip_nonfinite_grads
                        on_fit_batch_end
                    update_average       if overridden; else the loss is read later
                    (at a step boundary: a due checkpoint, a requested stop)
                zero_grad
                    freeze_optimizers
                on_stage_end             TRAIN, with the mean loss of all ranks
                on_stage_start           VALID, if there is a valid_set
                for each batch:
                    evaluate_batch
                        compute_forward
                        compute_objectives
                    update_average       if overridden
                on_stage_end             VALID, with its mean

        Callbacks are called after the hook of the same name.

        Parameters
        ----------
        epoch_counter : iterable of int
            The epochs: an `EpochCounter`, or plain numbers, of which a resumed run skips those
            that its checkpoint has completed.
        train_set, valid_set : Dataset or loader
            A Dataset is made into a loader by `make_dataloader`.
        progressbar : bool, optional
            Draw progress bars; by default on a terminal or in a notebook, see ``noprogressbar``.
        train_loader_kwargs, valid_loader_kwargs : mapping
            Passed to `make_dataloader`: ``batch_size``, ``num_workers``, ``shuffle`` and so on.

        Raises
        ------
        TrainingStopped
            After SIGTERM, SIGUSR1, Ctrl-C, `stop` or ``stop_after_minutes``, once the run is saved.
            It ends a script with code 75, or 130 after Ctrl-C, unless it is caught; a second Ctrl-C
            raises KeyboardInterrupt at once. Without a checkpointer, signals keep their effect.
        ValueError
            If losses or gradients were not finite more often than ``nonfinite_patience`` allows.
        """
        if self.test_only:
            logger.info("test_only is set: nothing is trained.")
            return
        self._overrides = find_overrides(type(self), Brain)
        deterministic = deterministic_algorithms(self.deterministic)
        watch = self._watching_for_hangs()
        with collective_call("fit"), deterministic, self._own_fit_state(), watch:
            with propagate_failures():
                train_set = self._as_loader(train_set, Stage.TRAIN, train_loader_kwargs)
                if valid_set is not None:
                    kwargs = {"ckpt_prefix": None, **valid_loader_kwargs}
                    valid_set = self._as_loader(valid_set, Stage.VALID, kwargs)
                    check_not_empty(valid_set, "valid_set")
                check_not_empty(train_set, "train_set")
                self._begin_fit(train_set, epoch_counter)
            enable = self._shows_bars(progressbar)
            with self._saving_and_stopping(), self._during_fit(shows_bars=enable):
                epoch = None
                for epoch in self._epochs_left(epoch_counter):
                    self._fit_train(train_set=train_set, epoch=epoch, enable=enable)
                    self._fit_valid(valid_set=valid_set, epoch=epoch, enable=enable)
                    if self._end_epoch(epoch):
                        break
                if epoch is None and not self._run.is_skipped:
                    logger.info("%s", nothing_to_train(self._run.epoch))
            self._run.end_fit()

    def evaluate(
        self,
        test_set: Any,
        max_key: str | None = None,
        min_key: str | None = None,
        progressbar: bool | None = None,
        test_loader_kwargs: Mapping[str, Any] = _NO_ARGUMENTS,
    ) -> float:
        """Evaluate the best checkpoint's model on a test set; the training's progress stays.

        Parameters
        ----------
        test_set : Dataset or loader
            A Dataset is made into a loader, which is not added to the checkpointer.
        max_key, min_key : str, optional
            The metric that was highest, or lowest, in the best checkpoint.
        progressbar, test_loader_kwargs
            As in `fit`.

        Returns
        -------
        float
            Mean of the finite losses, over all ranks.
        """
        kwargs = {**test_loader_kwargs, "ckpt_prefix": None}
        self._overrides = find_overrides(type(self), Brain)
        enable, nested = self._shows_bars(progressbar), self._fit_state.is_running
        with (
            collective_call("evaluate"),
            deterministic_algorithms(self.deterministic),
            self._stop_control.during_evaluation(self.checkpointer, nested=nested),
            self._evaluation_epoch.during_evaluation(),
            self._watching_for_hangs(),
        ):
            test_set = self._as_loader(test_set, Stage.TEST, kwargs)
            self.on_evaluate_start(max_key=max_key, min_key=min_key)
            stats = self.stage_stats
            self._begin_stage(Stage.TEST, None)
            with torch.no_grad():
                loss = self._evaluate_batches(test_set, Stage.TEST, enable=enable)
                self._end_stage(Stage.TEST, loss, None)
            if nested:
                self.stage_stats = stats
        return loss

    def stop(self, reason: str = "brain.stop() was called") -> None:
        """Request that `fit` saves and stops at the next step boundary.

        The reason is for the log, and for whoever catches `TrainingStopped`.
        """
        self._stop_control.request(reason)

    @collective_call("_fit_train")
    def _fit_train(self, train_set: Any, epoch: int, enable: bool) -> None:
        self._after_hook()
        self._begin_stage(Stage.TRAIN, epoch)
        self.modules.train()
        self.zero_grad()
        self._begin_epoch(train_set, epoch)
        self._run.train_step.buffers.watch(self.modules)
        boundary, train_batch = self._fit_state.boundary, self._train_batch_function()
        with open_training_pass(
            train_set,
            self._run,
            update=self._user_average(),
            bar=self._bar_options(Stage.TRAIN, epoch, enable=enable),
            limit=0 if self._reached_step_limit() else self._batch_limit(),
            profiler=self.profiler,
            hang_watch=self._hang_watch,
            watch=self._watch_batches(),
        ) as epoch_pass:
            for batch in epoch_pass:
                self._run.step += 1
                self._run.batches_trained += 1
                train_batch(batch, epoch_pass)
                epoch_pass.batch_done()
                if boundary is not None:
                    boundary.schedule.steps_done += 1
                    if self._window_ends():
                        boundary.reached()
                if self._reached_step_limit():
                    break
            if boundary is not None:
                boundary.data_ended()
        self._settle_step()
        self.zero_grad(set_to_none=True)
        self._add_unfrozen()
        self._end_stage(Stage.TRAIN, self._run.mean.mean_over_ranks(), epoch)
        self._run.end_epoch()

    @collective_call("_fit_valid")
    def _fit_valid(self, valid_set: Any, epoch: int, enable: bool) -> None:
        if valid_set is None:
            return
        self._after_hook()
        self._begin_stage(Stage.VALID, epoch)
        with torch.no_grad():
            loss = self._evaluate_batches(valid_set, Stage.VALID, enable=enable)
            self._end_stage(Stage.VALID, loss, epoch)

    def _evaluate_batches(self, batches: Any, stage: Stage, *, enable: bool) -> float:
        """Evaluate every batch and return the mean loss; `step` counts, then is restored."""
        nested = self._fit_state.is_nested
        boundary = None if nested else self._stop_control.boundary_of_evaluation(stage)
        with nullcontext() if nested else self._callbacks.during_evaluation(stage):
            return evaluate_batches(
                batches,
                lambda batch: self.evaluate_batch(batch, stage=stage),
                modules=self.modules,
                counter=self._run,
                shard=self.shard_evaluation,
                after_batch=None if boundary is None else boundary.reached_in_evaluation,
                update=self._user_average(),
                bar=self._bar_options(stage, self._run.epoch, enable=enable),
                limit=self._batch_limit(),
                hang_watch=self._hang_watch,
            )

    @contextmanager
    def _own_fit_state(self) -> Iterator[None]:
        """Give a fit that a hook of another fit calls, as GAN recipes do, a state of its own.

        Only the outer fit can be resumed: it saves and stops at its own step boundaries. Modules,
        optimizers, options and the count of optimizer steps are shared.
        """
        if not self._fit_state.is_running:
            self._fit_state = FitState()
            yield
            return
        outer = (self._run, self._fit_state, self.train_sampler, self.stage_stats)
        self._run, self._fit_state = self._run.nested(), FitState(is_nested=True)
        try:
            yield
        finally:
            optimizer_step = self.optimizer_step
            self._run, self._fit_state, self.train_sampler, self.stage_stats = outer
            self.optimizer_step = optimizer_step
