"""`Brain`: a training loop behind two methods."""

from __future__ import annotations

import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt import register_checkpoint_hooks
from brain_dist import (
    AMPConfig,
    StopSignal,
    TorchAutocast,
    WeightedGradients,
    World,
    failing_together,
    get_rank,
    get_world_size,
    if_main_process,
    make_grad_scaler,
    unwrap_module,
)

from ._checkpointed import CheckpointedPasses
from ._compiling import compile_modules
from ._determinism import deterministic_algorithms, prepare_determinism
from ._elastic import StepSize
from ._environment import record_environment
from ._epochs import epochs_left
from ._evaluated import ShownEpochs, is_of_the_model
from ._fillers import deal_whole_batches
from ._gradients import split_vectors
from ._inner_fit import apart_from_the_outer_fit
from ._loaders import is_loader, make_stage_loader
from ._losses import LossMean
from ._options import RunOptions
from ._profiling import StepProfiler
from ._progress import should_show
from ._ranks import wrap_for_ranks
from ._resume import RankState
from ._seed import decorrelate_ranks
from ._setup import (
    HParams,
    Modules,
    as_modules,
    check_group,
    choose_device,
    choose_precisions,
    describe_parameters,
)
from ._stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from brain_ckpt import Checkpointer
    from brain_dist import GradientOrder

__all__ = ["Brain"]

logger = logging.getLogger(__name__)

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@register_checkpoint_hooks
class Brain(CheckpointedPasses):
    """A PyTorch training loop behind `compute_forward` and `compute_objectives`.

    Subclass it, say how a batch becomes predictions and how predictions become a loss, and call
    `fit`. Every other method may be overridden too; `fit` says when each is called. Names,
    arguments and checkpoints are those of SpeechBrain 1.1.

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
        How to run: device, precision, checkpoint interval and so on; see `RunOptions`. They go
        before those in ``hparams``. Each can be read as an attribute: ``self.device``.
    checkpointer : brain_ckpt.Checkpointer, optional
        Where the run is saved, and gone on from when `fit` is called again. Optimizers, position,
        random state and counters are added to it.

    Attributes
    ----------
    step : int
        Batches of the pass so far, the one under way included.
    optimizer_step : int
        Accumulation windows that have been stepped on since training began.
    avg_train_loss : float
        Mean of the epoch's finite losses on this rank.
    nonfinite_count : int
        Batches of the epoch with a loss or gradient that was not finite.
    is_filler : bool
        Whether the batch under way is one that another rank has too, handed to this one so that
        both stay in step. It takes part in no gradient and no mean loss; metrics that a recipe
        keeps should leave it out as well.
    train_sampler : object or None
        Its ``set_epoch`` is called before each epoch.

    Raises
    ------
    ValueError
        For an unknown option, or a value or combination that cannot work.

    Examples
    --------
    >>> from torch.optim import SGD
    >>> class SimpleBrain(Brain):
    ...     def compute_forward(self, batch, stage):
    ...         return self.modules.model(batch[0] * self.hparams.scalar)
    ...
    ...     def compute_objectives(self, predictions, batch, stage):
    ...         return torch.nn.functional.l1_loss(predictions, batch[0])
    >>> model = torch.nn.Linear(in_features=10, out_features=10)
    >>> brain = SimpleBrain(
    ...     modules={"model": model},
    ...     opt_class=lambda x: SGD(x, lr=0.1),
    ...     hparams={"scalar": 5},
    ...     run_opts={"device": "cpu"},
    ... )
    >>> brain.fit(range(1), ([torch.rand(10, 10), torch.rand(10, 10)],))
    """

    if TYPE_CHECKING:  # the options, which are attributes; see RunOptions
        test_only: bool
        debug_epochs: int
        deterministic: bool
        noprogressbar: bool
        optimizer: torch.optim.Optimizer

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module] | None = None,
        opt_class: Any = None,
        hparams: Mapping[str, Any] | None = None,
        run_opts: RunOptions | Mapping[str, Any] | None = None,
        checkpointer: Checkpointer | None = None,
    ) -> None:
        options = RunOptions.resolve(run_opts, hparams)
        for name, value in options.items():
            setattr(self, name, value)
        self.run_options = options
        self.opt_class = opt_class
        self.checkpointer = checkpointer
        self.hparams = HParams(**(hparams or {}))
        self.distributed_launch = World.from_environment().launched
        self.rank = get_rank()
        check_group()

        if options.deterministic:  # before a device is used
            prepare_determinism(options.device, options.compile_mode if options.compile else None)
        self.device, self.device_type = choose_device(options.device)
        self.precision, self.eval_precision = choose_precisions(options, self.device_type)
        self.training_ctx = self._autocast(self.precision)
        self.evaluation_ctx = self._autocast(self.eval_precision)
        uses_scaler = self.precision == "fp16" and self.device_type == "cuda"
        self.scaler = make_grad_scaler(self.device, uses_scaler)
        self.modules = as_modules(modules, self.device)
        logger.info(describe_parameters(type(self).__name__, self.modules))
        if not self.tqdm_colored_bar:  # type: ignore[attr-defined]  # an option
            self.tqdm_barcolor = dict.fromkeys(self.tqdm_barcolor, "")
        self.profiler = self._make_profiler() if options.profile_training else None

        self.train_sampler: Any = None
        self.optimizers_dict = None
        self.step = 0
        self.optimizer_step = 0
        self.nonfinite_count = 0
        self._train_mean = LossMean()
        self._own_average: float | None = None  # what a recipe has put in place of that mean
        self._epoch: int | None = None
        self._epochs_done: int | None = None  # up to which a plain iterable of epochs is skipped
        self._has_wrapped = False
        self._gradient_order: GradientOrder | None = None
        self._stop = StopSignal()
        self._shown_epochs = ShownEpochs()
        self._weighted = WeightedGradients()
        self._step_size = StepSize(get_world_size(), options.grad_accumulation_factor)
        self._rank_state = RankState(
            lambda: self._train_mean, lambda: record_environment(self.device)
        )
        if checkpointer is not None:
            self._join_checkpointer(checkpointer)

    # ------------------------------------------------------------------ training

    def fit(
        self,
        epoch_counter: Iterable[int],
        train_set: Any,
        valid_set: Any = None,
        progressbar: bool | None = None,
        train_loader_kwargs: Mapping[str, Any] = _NOTHING,
        valid_loader_kwargs: Mapping[str, Any] = _NOTHING,
    ) -> None:
        """Train, epoch by epoch, going on where the newest checkpoint left off.

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
                    (at the window's border: a due checkpoint, a stop that was asked for)
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

        Parameters
        ----------
        epoch_counter : iterable of int
            The epochs: an `EpochCounter` that is in the checkpointer, or plain numbers, of which
            those that a checkpoint has behind it are left out.
        train_set, valid_set : Dataset or loader
            A Dataset is made into a loader by `make_dataloader`.
        progressbar : bool, optional
            Draw progress bars, on the main process. By default on a terminal or in a notebook,
            unless ``noprogressbar`` is set.
        train_loader_kwargs, valid_loader_kwargs : mapping
            Passed to `make_dataloader`: ``batch_size``, ``num_workers``, ``shuffle`` and so on.

        Raises
        ------
        TrainingStopped
            After SIGTERM, SIGUSR1, Ctrl-C, `stop` or ``stop_after_minutes``, once the run is saved.
            It ends a script with code 75, or 130 after Ctrl-C, unless it is caught; a second Ctrl-C
            is a KeyboardInterrupt at once. Without a checkpointer, signals do what they always do.
        ValueError
            If losses or gradients were not finite more often than ``nonfinite_patience`` allows.
        """
        if self.test_only:
            logger.info("test_only is set: nothing is trained.")
            return
        with deterministic_algorithms(self.deterministic), apart_from_the_outer_fit(self):
            self._fit(
                epoch_counter,
                train_set,
                valid_set,
                progressbar,
                train_loader_kwargs,
                valid_loader_kwargs,
            )

    def _fit(
        self,
        epoch_counter: Iterable[int],
        train_set: Any,
        valid_set: Any,
        progressbar: bool | None,
        train_loader_kwargs: Mapping[str, Any],
        valid_loader_kwargs: Mapping[str, Any],
    ) -> None:
        self._epochs_done = None
        with failing_together():
            train_set = self._as_loader(train_set, Stage.TRAIN, train_loader_kwargs)
            if valid_set is not None:
                kwargs = {"ckpt_prefix": None, **valid_loader_kwargs}
                valid_set = self._as_loader(valid_set, Stage.VALID, kwargs)
            if not self._is_inner_fit:
                self._add_recoverables_of_fit(train_set, epoch_counter)
            self.on_fit_start()
            if self._gradient_order is not None:
                self._gradient_order.replay()
        if not self._rank_state.holds_rng and not self._is_inner_fit:
            decorrelate_ranks(get_rank())  # until here all drew the same, to build the same model
        self._validates = valid_set is not None
        enable = self._shows_bars(progressbar)
        with self._stoppable():
            for epoch in self._epochs_of(epoch_counter):
                self._epoch = epoch
                self._fit_train(train_set=train_set, epoch=epoch, enable=enable)
                self._fit_valid(valid_set=valid_set, epoch=epoch, enable=enable)
                if self._reached_step_limit():
                    logger.info("The limit of %s optimizer steps is reached.", self.optimizer_step)
                    break
            self._drop_superseded()

    def on_fit_start(self) -> None:
        """Make ready to train: compile, wrap for several ranks, make optimizers, recover.

        Called by `fit` on every rank. What an override adds to the checkpointer before it calls
        this is recovered here, too.
        """
        if not self._has_wrapped:
            compile_modules(self.modules, self.run_options)
            self._gradient_order = wrap_for_ranks(
                self.modules, self.run_options, self.device, self.checkpointer
            )
            self._has_wrapped = True
        self.init_optimizers()
        self._recover_newest()

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
            logger.info("No opt_class was given: there is no optimizer unless the recipe makes it.")
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

    # ---------------------------------------------------------------- evaluation

    def evaluate(
        self,
        test_set: Any,
        max_key: str | None = None,
        min_key: str | None = None,
        progressbar: bool | None = None,
        test_loader_kwargs: Mapping[str, Any] = _NOTHING,
    ) -> float:
        """Evaluate the best checkpoint's model on a test set; the training's progress stays.

        Parameters
        ----------
        test_set : Dataset or loader
            A Dataset is made into a loader, which is not added to the checkpointer.
        max_key, min_key : str, optional
            The metric that was highest, or lowest, in the best checkpoint.
        progressbar : bool, optional
            As in `fit`.
        test_loader_kwargs : mapping
            Passed to `make_dataloader`.

        Returns
        -------
        float
            Mean of the finite losses, over all ranks.
        """
        kwargs = {**test_loader_kwargs, "ckpt_prefix": None}
        enable = self._shows_bars(progressbar)
        with (
            deterministic_algorithms(self.deterministic),
            self._stoppable_evaluation(),
            self._shown_epochs.during_evaluation(),
        ):
            test_set = self._as_loader(test_set, Stage.TEST, kwargs)
            self.on_evaluate_start(max_key=max_key, min_key=min_key)
            self.on_stage_start(Stage.TEST, epoch=None)
            with torch.no_grad():
                loss = self._evaluate_all(test_set, Stage.TEST, enable=enable)
                self.on_stage_end(Stage.TEST, loss, None)
        return loss

    def on_evaluate_start(self, max_key: str | None = None, min_key: str | None = None) -> None:
        """Load the model of the best checkpoint, or of the newest without a key.

        What belongs to the training is left as it is, but until `evaluate` ends an `EpochCounter`
        in the checkpointer shows the epoch of that checkpoint.

        Parameters
        ----------
        max_key, min_key : str, optional
            The metric that was highest, or lowest.
        """
        if self.checkpointer is not None:
            self._add_forgotten_modules()
            checkpoint = self.checkpointer.recover_if_possible(
                max_key=max_key, min_key=min_key, only=lambda _, obj: is_of_the_model(obj)
            )
            self._shown_epochs.show(self.checkpointer, checkpoint)

    # ---------------------------------------------------------------------- data

    def make_dataloader(
        self,
        dataset: Any,
        stage: Stage,
        ckpt_prefix: str | None = "dataloader-",
        **loader_kwargs: Any,
    ) -> Any:
        """Make a loader of a Dataset, as `fit` and `evaluate` do when they get one.

        In `Stage.TRAIN`, ``shuffle=True`` gives an order that depends on the seed and the epoch
        alone, and on several ranks batches are dealt out. Other stages see all data on each rank.

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
            DataLoader takes.

        Returns
        -------
        DataLoader
            One that a checkpoint can hold the position of.

        Raises
        ------
        ValueError
            If both ``shuffle`` and a sampler are given.
        """
        training = stage is Stage.TRAIN
        loader, sampler = make_stage_loader(
            dataset,
            loader_kwargs,
            for_training=training,
            shard_evaluation=self.shard_evaluation,
        )
        if training:
            self.train_sampler = sampler
            own = loader_kwargs.get("sampler"), loader_kwargs.get("batch_sampler")
            self._has_own_sampler = own != (None, None)
        if (
            self.checkpointer is not None
            and not self._is_inner_fit
            and ckpt_prefix is not None
            and hasattr(loader, "state_dict")
        ):
            self.checkpointer.add_recoverable(ckpt_prefix + stage.name, loader, optional_load=True)
        return loader

    def _as_loader(self, data: Any, stage: Stage, kwargs: Mapping[str, Any]) -> Any:
        loader = data if is_loader(data) else self.make_dataloader(data, stage, **kwargs)
        if stage is Stage.TRAIN:
            # A fit_batch of the recipe's own cannot be told that a batch weighs nothing.
            fill = not self._overrides("fit_batch")
            deal_whole_batches(loader, fill=fill, elastic=self.run_options.elastic)
        return loader

    # ------------------------------------------------------------------- progress

    @property
    def raw_modules(self) -> Modules:
        """The modules without what wraps them for several ranks."""
        return Modules({name: unwrap_module(module) for name, module in self.modules.items()})

    def print_trainable_parameters(self) -> None:
        """Log how many parameters there are, and how many of them are trained."""
        logger.info(describe_parameters(type(self).__name__, self.modules))

    # ------------------------------------------------------- the parts of a run

    def _autocast(self, precision: str) -> TorchAutocast:
        return TorchAutocast(
            device_type=self.device_type, dtype=AMPConfig.from_name(precision).dtype
        )

    def _make_profiler(self) -> StepProfiler:
        folder = getattr(self.hparams, "output_folder", ".")
        options = self.run_options
        return StepProfiler(folder, options.profile_warmup, options.profile_steps)

    def _shows_bars(self, progressbar: bool | None) -> bool:
        return if_main_process() and should_show(progressbar, forbidden=self.noprogressbar)

    def _epochs_of(self, epoch_counter: Iterable[int]) -> Iterator[int]:
        """Choose the epochs to do: a counter that was recovered knows them by itself."""
        counter_recovers = self.checkpointer is not None and any(
            obj is epoch_counter and (self._restored is None or name in self._restored)
            for name, obj in self.checkpointer.recoverables.items()
        )
        done = None if counter_recovers else self._epochs_done
        at_most = self.debug_epochs if self.debug and self.debug_epochs > 0 else None
        return epochs_left(epoch_counter, done, at_most)
