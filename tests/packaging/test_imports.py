"""Importing a package changes nothing, and loads only what the package declares."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from typing import Any

import pytest

PROGRAM = """
import json, logging, os, random, signal, sys, threading, warnings
import numpy, torch, torch.utils.data, torch.utils.data.dataloader as loader

HEAVY = ("torch._dynamo", "torch._inductor", "torch.utils.tensorboard", "torch.distributed.fsdp",
         "matplotlib", "pandas", "unittest", "IPython")

def state():
    root, manager = logging.getLogger(), logging.root.manager
    backends, multiprocessing = torch.backends, torch.multiprocessing
    return {
        "excepthook": repr(sys.excepthook), "threading.excepthook": repr(threading.excepthook),
        "warnings filters": repr(warnings.filters), "showwarning": repr(warnings.showwarning),
        "log handlers": repr(root.handlers), "log level": root.level, "disabled": manager.disable,
        "logger class": repr(logging.getLoggerClass()),
        "captured warnings": repr(logging._warnings_showwarning),
        "signals": repr([signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]),
        "environment": dict(os.environ), "folder": os.getcwd(), "path": list(sys.path),
        "threads": threading.active_count(), "torch threads": torch.get_num_threads(),
        "default dtype": repr(torch.get_default_dtype()), "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly": torch.is_anomaly_enabled(), "matmul": torch.get_float32_matmul_precision(),
        "cudnn": [getattr(backends.cudnn, k) for k in ("enabled", "benchmark", "deterministic")],
        "autocast": torch.is_autocast_enabled("cpu"), "quantized": backends.quantized.engine,
        "random": repr(random.getstate()), "numpy": repr(numpy.random.get_state()),
        "torch random": torch.random.get_rng_state().sum().item(),
        "loader classes": repr([loader.DataLoader, loader._BaseDataLoaderIter]),
        "loader methods": repr([vars(loader.DataLoader), vars(loader._BaseDataLoaderIter)]),
        "start method": repr(multiprocessing.get_start_method(allow_none=True)),
        "sharing": multiprocessing.get_sharing_strategy(),
        "process group": torch.distributed.is_initialized(),
    }

before, loaded_before = state(), set(sys.modules)
package = __import__(sys.argv[1])
for name in package.__all__:  # a module is loaded when a name of it is first used
    getattr(package, name)
after, loaded = state(), set(sys.modules) - loaded_before
known = set(sys.stdlib_module_names) | {name.partition(".")[0] for name in loaded_before}
# PyYAML's own runtime, and a module of Python's library that is named after the platform.
loaded = {name for name in loaded if "cython" not in name and "_sysconfigdata" not in name}
print(json.dumps({
    "changed": {k: [repr(before[k]), repr(after[k])] for k in before if before[k] != after[k]},
    "loaded": sorted({name.partition(".")[0] for name in loaded} - known),
    "heavy": sorted(loaded & set(HEAVY)),
}))
"""
# Modules that a user imports from, besides the packages themselves.
OFFERED = {"brain_core.testing"}
LOADS = {
    "brain_dist": {"brain_dist"},
    "brain_ckpt": {"brain_ckpt", "brain_dist", "yaml", "_yaml"},
    "brain_data": {"brain_data", "brain_dist", "hyperpyyaml", "ruamel", "yaml", "_yaml", "tqdm"},
    "brain_core": {
        *("brain_core", "brain_ckpt", "brain_data", "brain_dist"),
        *("hyperpyyaml", "ruamel", "yaml", "_yaml", "tqdm"),
    },
}


@functools.cache
def import_alone(package: str) -> dict[str, Any]:
    """Return what importing every name of a package loads and changes in a new interpreter."""
    command = [sys.executable, "-c", PROGRAM, package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_loads_no_module_before_a_name_of_it_is_used(package):
    """Except the module that loads the names."""
    code = f"import sys, {package} as p; print(*sorted(n for n in sys.modules if 'brain_' in n))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert set(done.stdout.split()) == {package, "brain_dist", "brain_dist.lazy"}, done.stderr


def test_every_public_name_has_a_module(package):
    """The two lists of each package agree, and `dir` shows the names."""
    module = importlib.import_module(package)
    listed = [name for names in module._HOMES.values() for name in names.split()]
    assert sorted(listed) == sorted(module.__all__)
    assert set(module.__all__) <= set(dir(module))


def test_importing_loads_only_what_the_package_declares(package):
    """A user of one package loads no other."""
    assert set(import_alone(package)["loaded"]) <= LOADS[package]


def test_importing_loads_no_heavy_module(package):
    """Functions load what takes long to load."""
    assert import_alone(package)["heavy"] == []


def test_importing_brain_does_not_load_numpys_generators():
    """They take 4 ms, which the first pass over a loader pays."""
    code = "import sys, torch; from brain_core import Brain; print('numpy.random' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["False"], done.stderr


def test_importing_changes_nothing(package):
    """No torch flag, log handler, hook, filter, random state or class changes."""
    assert import_alone(package)["changed"] == {}


def test_public_names_are_sorted_and_can_be_imported(package):
    """``__all__`` lists constants, then classes, then functions."""
    module = importlib.import_module(package)
    order = sorted(set(module.__all__), key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    assert list(module.__all__) == order
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert missing == []


def test_public_names_have_a_docstring(package):
    """``help()`` of each public class and function says something."""
    module = importlib.import_module(package)
    public = {name: getattr(module, name) for name in module.__all__}
    silent = [name for name, thing in public.items() if callable(thing) and not thing.__doc__]
    assert silent == []


def test_no_public_name_is_a_module(package):
    """A module is not an address to rely on, and shadows no public name once it is imported."""
    module = importlib.import_module(package)
    assert [n for n in module.__all__ if inspect.ismodule(getattr(module, n))] == []
    modules = {each.name for each in pkgutil.iter_modules(module.__path__)}
    assert modules & set(module.__all__) == set()


def test_folders_of_a_package_export_nothing(package):
    """What is inside them is imported from the package, or is private."""
    module = importlib.import_module(package)
    exported = {}
    for folder in pkgutil.walk_packages(module.__path__, f"{package}."):
        if folder.ispkg and folder.name not in OFFERED:
            names = vars(importlib.import_module(folder.name)).items()
            own = {n for n, value in names if not (n.startswith("_") or inspect.ismodule(value))}
            exported[folder.name] = own - {"annotations"}
    assert [name for name, own in exported.items() if own] == []


@pytest.mark.parametrize("name", ["hyperpyyaml", "tqdm", "brain_data", "brain_core"])
def test_brain_ckpt_does_not_load(name):
    """The checkpointer also serves training loops that are not `Brain`."""
    pytest.importorskip("brain_ckpt")
    assert name not in import_alone("brain_ckpt")["loaded"]
