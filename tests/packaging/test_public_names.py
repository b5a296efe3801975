"""The names that a SpeechBrain recipe imports are there, each in its package."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import textwrap

import pytest

NAMES = {
    "brain_dist": """
        get_rank get_local_rank get_world_size is_distributed_initialized if_main_process
        is_local_rank_zero infer_device ddp_init_group ddp_barrier ddp_broadcast ddp_all_reduce
        main_process_only once_per_node run_on_main run_once_per_node no_sync AMPConfig
        TorchAutocast fwd_default_precision
    """,
    "brain_ckpt": """
        Checkpointer Checkpoint ckpt_recency register_checkpoint_hooks mark_as_saver mark_as_loader
        mark_as_transfer average_checkpoints average_state_dicts torch_save torch_recovery
        torch_parameter_transfer Pretrainer RNGState
    """,
    "brain_data": """
        DynamicItemDataset FilteredSortedDynamicItemDataset add_dynamic_item set_output_keys
        DataPipeline takes provides StaticItem DynamicItem GeneratorDynamicItem CachedDynamicItem
        load_data_csv load_data_json PaddedBatch PaddedData BatchsizeGuesser batch_pad_right
        undo_padding SaveableDataLoader LoopedLoader make_dataloader distributed_loader_specifics
        ReproducibleRandomSampler ReproducibleWeightedRandomSampler ConcatDatasetBatchSampler
        DynamicBatchSampler DistributedSamplerWrapper BalancingDataSampler
        create_experiment_directory get_environment_description
    """,
    "brain_core": """
        Brain Stage RunOptions parse_arguments create_experiment_directory EpochCounter
        EpochCounterWithStopper FileTrainLogger TensorboardLogger WandBLogger seed_everything
    """,
}


def test_every_promised_name_is_exported(package):
    """A recipe needs to change only the package that it imports a name from."""
    exported = set(importlib.import_module(package).__all__)
    assert set(NAMES[package].split()) - exported == set()


def test_examples_in_docstrings_run(package, doctest_of):
    """Those of every folder, and they give what is shown."""
    results = doctest_of(package)
    assert results.attempted > 0
    assert results.failed == 0


def test_the_sessions_named_in_contributing_exist(repository):
    """Every `nox -s` in it names a session."""
    text = (repository.root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sessions = re.findall(r'nox -s "?(\w+)', text)
    noxfile = (repository.root / "noxfile.py").read_text(encoding="utf-8")
    assert sessions
    assert [name for name in sessions if f"def {name}(session" not in noxfile] == []


def test_readmes_and_examples_import_only_public_names(repository):
    """What a user copies needs no module behind a package."""
    texts = {path: path.read_text(encoding="utf-8") for path in documents(repository.root)}
    code = {
        path: [text]
        if path.suffix == ".py"
        else re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        for path, text in texts.items()
    }
    imports = [
        (path.name, node.module, alias.name)
        for path, blocks in code.items()
        for block in blocks
        for node in ast.walk(ast.parse(textwrap.dedent(block)))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("brain_")
        for alias in node.names
    ]
    assert len({module for _, module, _ in imports}) >= len(NAMES)
    private = [row for row in imports if not is_public(*row[1:])]
    assert private == []


def documents(root):
    """Return the READMEs and the examples."""
    readmes = [root / "README.md", *root.glob("packages/*/README.md")]
    return [*readmes, *(root / "examples").rglob("*.py")]


def is_public(module, name):
    """Return whether a user may import a name from a module."""
    offered = module in {*NAMES, "brain_core.testing"}
    return offered and name in importlib.import_module(module).__all__


@pytest.fixture
def doctest_of(monkeypatch, tmp_path):
    """Give a function that runs the doctests of every module of a package."""
    monkeypatch.chdir(tmp_path)

    def run(package: str) -> doctest.TestResults:
        found = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        path = importlib.import_module(package).__path__
        for each in pkgutil.walk_packages(path, f"{package}."):
            if not each.name.endswith(".__main__"):
                for test in doctest.DocTestFinder().find(importlib.import_module(each.name)):
                    found.run(test)
        return found.summarize(verbose=False)

    return run
