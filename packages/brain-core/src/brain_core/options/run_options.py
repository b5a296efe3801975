"""The options of a run, as one frozen and validated object."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from brain_core.options.command_line import read_command_line
from brain_core.options.suggestion import nearest
from brain_core.options.value_types import check_type, type_hints

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import Self

__all__ = ["Precision", "RunOptions", "parse_arguments"]

Precision = Literal["fp32", "fp16", "bf16"]
Backend = Literal["nccl", "gloo", "mpi"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
Parallel = Literal["ddp", "fsdp"]

_KINDS_OF_CHANGES = ("data", "modules", "optimizer", "optimizer_options")
_AT_LEAST = {
    "ckpt_interval_patience": 1,
    "debug_batches": 1,
    "grad_accumulation_factor": 1,
    "mirror_grace_seconds": 0,
    "nonfinite_patience": 0,
    "profile_warmup": 0,
    "profile_steps": 1,
}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How an experiment is run, as opposed to what it computes.

    Each option may be given on the command line, in code, or in the hyperparameters; see `resolve`.
    An instance reads like a mapping too (``options["device"]``, ``options.get("device")``), as
    recipes expect. Names and defaults are those of SpeechBrain 1.1.

    Attributes
    ----------
    test_only : bool
        Skip training: `Brain.fit` returns at once.
    debug : bool
        Run a few batches of a few epochs, with checkpoints in a temporary directory.
    debug_batches, debug_epochs : int
        Batches and epochs of a debug run; epochs of zero or less mean all of them.
    debug_persistently : bool
        Keep the checkpoints that a debug run writes.
    deterministic : bool
        Use deterministic algorithms in `Brain.fit` and `Brain.evaluate`, and log what cannot be
        made deterministic.
    device : str, optional
        ``cpu``, ``cuda``, ``cuda:N``, ``mps``, ``xpu``; by default the best one available.
    data_parallel_backend, data_parallel_count
        Not supported: torch's ``DataParallel`` is superseded by ``torchrun``.
    distributed_backend : {"nccl", "gloo", "mpi"}
        The backend of `ddp_init_group`.
    distributed_launch : bool
        Whether ``torchrun`` started this process. Determined, not set.
    find_unused_parameters : bool
        Let DDP find parameters that take no part in a loss.
    parallel : {"ddp", "fsdp"}
        How modules are wrapped for several ranks.
    recover_attributes : bool or list of str
        Save and restore plain values that training changes in attributes of the Brain, of
        ``hparams`` and of modules: all of them, none, or those named. Not an option of SpeechBrain.
    trusted : bool
        Load checkpoints that name code to run, as older ones of a recipe's own classes do. Only for
        checkpoints whose author you trust. Not an option of SpeechBrain.
    elastic : bool
        Resume on any number of ranks: where they cannot take the same steps, shard the rest of the
        epoch in steps of about the same size. Not an option of SpeechBrain.
    accept_changes : bool or list of str
        Resume although the script was changed since the checkpoint was saved: all of these kinds of
        changes, none, or those named. ``data``: other batches start the interrupted epoch again.
        ``optimizer``: one of another class starts anew. ``optimizer_options``: a learning rate or
        another option that was changed counts, instead of the checkpoint's. ``modules``: the
        parameters that fit are loaded, the others start as the script makes them, and so do
        optimizers. Each applies once, at the change. Not an option of SpeechBrain.
    resume_from : str, optional
        Go back to an older checkpoint, once: its name, ``step:N`` for the one saved after N
        optimizer steps, or ``epoch:N`` for the last of that epoch. Newer checkpoints are moved into
        the folder ``set_aside`` beside them. Not an option of SpeechBrain.
    resume_anyway : bool
        Resume although a loader cannot find the same batches again: the position is kept, and rows
        may be repeated or missing. Not an option of SpeechBrain.
    shard_loaders : bool
        On several ranks, shard the batches of a `torch.utils.data.DataLoader` that `Brain.fit` is
        given, unless its sampler does; else each rank sees them all. Not an option of SpeechBrain.
    shard_evaluation : bool
        Shard the batches of validation and test over the ranks; else each rank sees all of them.
    jit, jit_module_keys
        Script all modules, or those named. torch 2.13 and later deprecate this: prefer ``compile``.
    compile, compile_module_keys
        Compile all modules with ``torch.compile``, or those named, in place.
    compile_mode, compile_using_fullgraph, compile_using_dynamic_shape_tracing
        Passed on to ``torch.compile``.
    precision, eval_precision : {"fp32", "fp16", "bf16"}
        Automatic mixed precision in training and in evaluation.
    auto_mix_prec, bfloat16_mix_prec : bool
        Older spellings of ``precision="fp16"`` and ``precision="bf16"``.
    max_grad_norm : float
        Largest global norm of an optimizer's gradients; below zero, they are not clipped.
    skip_nonfinite_grads : bool
        Drop the gradients that hold a NaN or an infinity and step with the others. Without it the
        whole step is skipped.
    nonfinite_patience : int
        The number of batches of an epoch that may have a non-finite loss or gradient.
    noprogressbar : bool
        Show no progress bars.
    ckpt_interval_minutes : float
        Minutes between checkpoints within an epoch; zero or less means none.
    ckpt_interval_steps : int
        Batches between checkpoints within an epoch; zero or less means none.
    ckpt_interval_patience : int
        Checkpoints within an epoch, in a row, whose failure ends the run, where the cause may pass:
        a full disk, or a network file system that is away. Before, the failure is logged, and the
        run saves again at the next interval. Not an option of SpeechBrain.
    stop_after_minutes : float
        Minutes of training after which `Brain.fit` saves and stops, as after SIGTERM, for instance
        before a batch job's time is up; zero or less means never.
    mirror : str, optional
        Copy checkpoints to an object store beside training, such as ``s3://bucket/runs/7``, and
        look for them there, too; see `brain_ckpt.Checkpointer.set_mirror`. Debug runs are not
        copied. Not an option of SpeechBrain.
    mirror_grace_seconds : float
        How long the end of training, or a stop signal, waits for the last copy.
    hang_seconds : float
        Log which rank waits where, with stacks, when no batch ends for this long; zero or less
        means never. Choose more than a batch, a save and the loader's start can take. Not an option
        of SpeechBrain.
    grad_accumulation_factor : int
        Batches to an optimizer step.
    optimizer_step_limit : int, optional
        Optimizer steps after which training ends.
    tqdm_colored_bar, tqdm_barcolor
        Whether to colour the bars, and the colours of ``train``, ``valid`` and ``test``.
    remove_vector_weight_decay : bool
        Give biases, norms and other vectors a parameter group without weight decay.
    profile_training, profile_warmup, profile_steps
        Trace a few steps with ``torch.profiler``.
    log_config : str, optional
        A YAML file that configures logging.
    param_file : str
        The hyperparameter file named on the command line.
    overridden_args : set of str
        The options that were given, as opposed to left at their default.

    Raises
    ------
    ValueError
        For a value that is out of range, or two options that exclude each other.
    """

    test_only: bool = False
    debug: bool = False
    debug_batches: int = 2
    debug_epochs: int = 2
    debug_persistently: bool = False
    deterministic: bool = False
    device: str | None = None
    data_parallel_backend: bool = False
    data_parallel_count: int = -1
    distributed_backend: Backend = "nccl"
    distributed_launch: bool = False
    find_unused_parameters: bool = False
    parallel: Parallel = "ddp"
    recover_attributes: bool | list[str] = True
    trusted: bool = False
    elastic: bool = False
    accept_changes: bool | list[str] = False
    resume_from: str | None = None
    resume_anyway: bool = False
    shard_loaders: bool = True
    shard_evaluation: bool = False
    jit: bool = False
    jit_module_keys: list[str] | None = None
    compile: bool = False
    compile_module_keys: list[str] | None = None
    compile_mode: CompileMode = "default"
    compile_using_fullgraph: bool = False
    compile_using_dynamic_shape_tracing: bool = False
    precision: Precision = "fp32"
    eval_precision: Precision = "fp32"
    auto_mix_prec: bool = False
    bfloat16_mix_prec: bool = False
    max_grad_norm: float = 5.0
    skip_nonfinite_grads: bool = False
    nonfinite_patience: int = 3
    noprogressbar: bool = False
    ckpt_interval_minutes: float = 0
    ckpt_interval_steps: int = 0
    ckpt_interval_patience: int = 3
    stop_after_minutes: float = 0
    mirror: str | None = None
    mirror_grace_seconds: float = 120
    hang_seconds: float = 0
    grad_accumulation_factor: int = 1
    optimizer_step_limit: int | None = None
    tqdm_colored_bar: bool = False
    tqdm_barcolor: dict[str, str] = field(
        default_factory=lambda: {"train": "GREEN", "valid": "MAGENTA", "test": "CYAN"}
    )
    remove_vector_weight_decay: bool = False
    profile_training: bool = False
    profile_warmup: int = 5
    profile_steps: int = 5
    log_config: str | None = None
    param_file: str = ""
    overridden_args: set[str] | None = None

    def __new__(cls, **given: Any) -> Self:
        """Remember which options the caller gave, equal to the default or not."""
        self = object.__new__(cls)
        object.__setattr__(self, "_given", frozenset(given))
        return self

    def __post_init__(self) -> None:
        """Validate every value, and options that exclude each other."""
        if self.overridden_args is None:
            object.__setattr__(self, "overridden_args", set(self._given))  # type: ignore[attr-defined]  # set in __new__
        hints = type_hints(type(self)) if self._given else {}  # type: ignore[attr-defined]  # as above
        for name in sorted(self._given):  # type: ignore[attr-defined]  # as above
            check_type(name, getattr(self, name), hints[name])
        for name, least in _AT_LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)!r}.")
        if self.ckpt_interval_minutes > 0 and self.ckpt_interval_steps > 0:
            raise ValueError(
                "ckpt_interval_minutes and ckpt_interval_steps exclude each other, got "
                f"{self.ckpt_interval_minutes!r} and {self.ckpt_interval_steps!r}. Set one to 0."
            )
        kinds = [] if isinstance(self.accept_changes, bool) else self.accept_changes
        for kind in kinds:
            if kind not in _KINDS_OF_CHANGES:
                raise ValueError(
                    f"accept_changes must name some of {', '.join(_KINDS_OF_CHANGES)}, got "
                    f"{kind!r}.{nearest(kind, _KINDS_OF_CHANGES)}"
                )
        if self.data_parallel_backend:
            raise ValueError(
                "data_parallel_backend is not supported: torch's DataParallel is superseded by one "
                "process per device. Start the script with:\n"
                "    torchrun --standalone --nproc-per-node=N experiment.py hyperparams.yaml"
            )

    @classmethod
    def from_dictionary(cls, args_dict: Mapping[str, Any]) -> RunOptions:
        """Return options from a mapping; every key in it counts as given.

        Raises
        ------
        ValueError
            For a key that is no option, with the nearest one that is.
        """
        known = [f.name for f in fields(cls)]
        for key in args_dict:
            if key not in known:
                raise ValueError(
                    f"A run option must be one of RunOptions' fields, got {key!r}."
                    f"{nearest(key, known)}"
                )
        return cls(**args_dict)

    @classmethod
    def from_command_line_args(
        cls, arg_list: list[str] | None = None
    ) -> tuple[str, RunOptions, str]:
        """Read a command line, as `parse_arguments` does.

        Examples
        --------
        >>> argv = ["hyperparams.yaml", "--device", "cuda:1", "--seed", "10"]
        >>> filename, run_opts, overrides = RunOptions.from_command_line_args(argv)
        >>> filename
        'hyperparams.yaml'
        >>> run_opts["device"]
        'cuda:1'
        >>> overrides
        'seed: 10'
        """
        return read_command_line(cls, arg_list)

    @classmethod
    def resolve(
        cls,
        run_opts: RunOptions | Mapping[str, Any] | None,
        hparams: Mapping[str, Any] | None,
    ) -> RunOptions:
        """Return defaults, overridden by ``hparams``, overridden by ``run_opts``."""
        if run_opts is None:
            run_opts = cls()
        elif not isinstance(run_opts, RunOptions):
            run_opts = cls.from_dictionary(run_opts)
        options = {f.name for f in fields(cls)} - {"overridden_args"}
        merged = {key: value for key, value in (hparams or {}).items() if key in options}
        given = run_opts.overridden_args or set()
        merged |= {key: run_opts[key] for key in given & options}
        return cls(**merged)

    def why_inexact(self) -> list[str]:
        """Return what keeps a run with these options from resuming with the same bits."""
        if self.jit and not self.deterministic:
            return ["TorchScript optimizes after its first calls (--deterministic turns that off)"]
        return []

    def as_dict(self) -> dict[str, Any]:
        """Return the options as a new dict."""
        return {each.name: copy(getattr(self, each.name)) for each in fields(self)}

    def __getitem__(self, key: str) -> Any:
        """Read an option as from a mapping."""
        try:
            return getattr(self, key)
        except AttributeError:
            raise KeyError(key) from None

    def get(self, key: str, default: Any = None) -> Any:
        """Return an option, or ``default`` if no option has that name."""
        return getattr(self, key, default)

    def __contains__(self, key: object) -> bool:
        """Return whether an option has that name."""
        return key in self.keys()

    def keys(self) -> Any:
        """Return the names of the options."""
        return self.as_dict().keys()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self.as_dict())

    def items(self) -> Any:
        """Return pairs of name and value."""
        return self.as_dict().items()

    def values(self) -> Any:
        """Return the values, in the order of the names."""
        return self.as_dict().values()


def parse_arguments(arg_list: list[str] | None = None) -> tuple[str, RunOptions, str]:
    """Split a command line into the hyperparameter file, the run options and the overrides.

    An option's name is never abbreviated: ``--test=x`` is a hyperparameter called ``test``. A flag
    is turned off by ``--no-flag`` or ``--flag=false``. A value keeps every ``=`` after the first.

    Parameters
    ----------
    arg_list : list of str, optional
        The words after the script's name; ``sys.argv[1:]`` by default.

    Returns
    -------
    param_file : str
        The hyperparameter file.
    run_opts : RunOptions
        The options that were given, over the defaults.
    overrides : str
        The rest as YAML, one ``name: value`` a line, for ``load_hyperpyyaml``.

    Examples
    --------
    >>> parse_arguments(["train.yaml", "--debug", "--name=a=b"])[2]
    'name: a=b'
    """
    return RunOptions.from_command_line_args(arg_list)
