"""Which of SpeechBrain's names are here, and in which package: the one table of ``brain-move``."""

from __future__ import annotations

import itertools
from typing import NamedTuple

__all__ = ["OLD", "PACKAGES", "Moved", "as_markdown", "as_text", "find", "holds_moved_names"]

OLD = "speechbrain"
PACKAGES = ("brain_ckpt", "brain_core", "brain_data", "brain_dist")

# Package here, SpeechBrain's module (after "speechbrain."), and the names of it that are here.
_ROWS = tuple(
    (package, module, tuple(names.split()))
    for package, modules in {
        "brain_core": {
            "": "Brain RunOptions Stage create_experiment_directory parse_arguments",
            "core": "Brain RunOptions Stage create_experiment_directory",
            "utils": "seed_everything",
            "utils.epoch_loop": "EpochCounter EpochCounterWithStopper",
            "utils.run_opts": "RunOptions",
            "utils.seed": "seed_everything",
            "utils.train_logger": "FileTrainLogger TensorboardLogger TrainLogger WandBLogger",
        },
        "brain_ckpt": {
            "utils.checkpoints": """
                Checkpoint Checkpointer average_checkpoints average_state_dicts ckpt_recency
                mark_as_loader mark_as_saver mark_as_transfer register_checkpoint_hooks
                torch_parameter_transfer torch_recovery torch_save
            """,
            "utils.parameter_transfer": "Pretrainer",
        },
        "brain_data": {
            "dataio.batch": "BatchsizeGuesser PaddedBatch PaddedData",
            "dataio.dataio": "load_data_csv load_data_json",
            "dataio.dataloader": """
                LoopedLoader SaveableDataLoader distributed_loader_specifics make_dataloader
            """,
            "dataio.dataset": """
                DynamicItemDataset FilteredSortedDynamicItemDataset add_dynamic_item set_output_keys
            """,
            "dataio.sampler": """
                BalancingDataSampler ConcatDatasetBatchSampler DistributedSamplerWrapper
                DynamicBatchSampler ReproducibleRandomSampler ReproducibleWeightedRandomSampler
            """,
            "utils.data_pipeline": """
                CachedDynamicItem DataPipeline DynamicItem GeneratorDynamicItem StaticItem provides
                takes
            """,
            "utils.data_utils": "batch_pad_right undo_padding",
            "utils.logger": "TqdmCompatibleStreamHandler get_environment_description",
        },
        "brain_dist": {
            "utils.autocast": "AMPConfig TorchAutocast fwd_default_precision",
            "utils.distributed": """
                ddp_all_reduce ddp_barrier ddp_broadcast ddp_init_group get_local_rank get_rank
                if_main_process infer_device is_distributed_initialized is_local_rank_zero
                main_process_only once_per_node run_on_main run_once_per_node
            """,
        },
    }.items()
    for module, names in modules.items()
)
_NAMES = {module: frozenset(names) for _, module, names in _ROWS}
_PACKAGE = {name: package for package, _, names in _ROWS for name in names}


class Moved(NamedTuple):
    """A name of SpeechBrain that is here.

    Attributes
    ----------
    package : str
        The package that has it.
    name : str
        The name in that package; the same as in SpeechBrain.
    length : int
        How many parts of the path, without ``speechbrain``, lead to the name.
    """

    package: str
    name: str
    length: int


def find(path: tuple[str, ...]) -> Moved | None:
    """Return where the first name in a path is here, or None if the path has no such name.

    A name of one module of the table is found in the others, too: they import it, such as
    ``speechbrain.core.AMPConfig``, or had it in an earlier version.

    Examples
    --------
    >>> find(("core", "Stage", "TRAIN"))
    Moved(package='brain_core', name='Stage', length=2)
    >>> find(("nnet", "linear", "Linear"))
    """
    for position, name in enumerate(path):
        module = ".".join(path[:position])
        known = _PACKAGE if module and module in _NAMES else _NAMES.get(module, ())
        if name in known:
            return Moved(_PACKAGE[name], name, position + 1)
    return None


def holds_moved_names(path: tuple[str, ...]) -> bool:
    """Return whether a path is a module that has names of the table, or contains one.

    Examples
    --------
    >>> holds_moved_names(("utils",)), holds_moved_names(("nnet",))
    (True, False)
    """
    return not path or any(tuple(module.split("."))[: len(path)] == path for module in _NAMES)


def as_text() -> str:
    """Return the table for a terminal."""
    lines: list[str] = []
    for package, rows in itertools.groupby(_ROWS, key=lambda row: row[0]):
        lines.append(f"{package} has")
        lines += [f"  from {_old(module)}: {', '.join(names)}" for _, module, names in rows]
    return "\n".join(lines)


def as_markdown() -> str:
    """Return the table for the README."""
    lines = ["| SpeechBrain's module | these names of it | are in |", "|---|---|---|"]
    for package, module, names in _ROWS:
        cell = " ".join(f"`{name}`" for name in names)
        lines.append(f"| `{_old(module)}` | {cell} | `{package}` |")
    return "\n".join(lines)


def _old(module: str) -> str:
    return f"{OLD}.{module}" if module else OLD
