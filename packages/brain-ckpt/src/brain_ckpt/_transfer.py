"""Parameters from elsewhere: a model that was trained before, in whole or in part."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from brain_ckpt._errors import CheckpointMismatchError
from brain_ckpt._hooks import HookRegistry, find_loader, find_transfer, torch_recovery
from brain_ckpt._layout import PARAMFILE_EXT, check_name
from brain_ckpt._states import bare_module, fit_keys
from brain_ckpt._tensor_files import read_state
from brain_dist import ddp_barrier, main_process_only

logger = logging.getLogger(__name__)


def torch_parameter_transfer(obj: torch.nn.Module, path: str | Path) -> None:
    """Load the parameters that fit by name, and warn of each one that does not.

    Parameters
    ----------
    obj : torch.nn.Module
        The module.
    path : str or Path
        A state dict that torch.save wrote.

    Raises
    ------
    CheckpointMismatchError
        If a parameter has the name of one of the module's, and another shape.
    """
    state = read_state(Path(path))
    if not isinstance(state, Mapping):
        raise CheckpointMismatchError(
            f"{path} has to hold a state dict, got a {type(state).__name__}; save "
            f"module.state_dict() there"
        )
    module = bare_module(obj)
    try:
        result = module.load_state_dict(fit_keys(module, state), strict=False)
    except RuntimeError as error:
        raise CheckpointMismatchError(
            f"parameters taken over have the shapes of the module's, got from {path}: {error}"
        ) from error
    for key in result.missing_keys:
        logger.warning("%s has no parameters for %r of %s", path, key, type(module).__name__)
    for key in result.unexpected_keys:
        logger.warning("%s of %s knows no %r", path, type(module).__name__, key)


class Pretrainer:
    """Collects files with pretrained parameters, then loads each into its object.

    Parameters
    ----------
    collect_in : str or Path, optional
        The directory to collect in; None uses files where they are.
    loadables : mapping of str to object
        The objects.
    paths : mapping of str to str
        Where the file of each object is: a path, or a URL that fsspec knows.
    custom_hooks : mapping of str to callable
        ``hook(obj, path)`` for those that are not loaded as usual.
    conditions : mapping of str to bool or callable
        Objects whose condition is false are left alone.
    """

    def __init__(
        self,
        collect_in: str | Path | None = None,
        loadables: Mapping[str, Any] | None = None,
        paths: Mapping[str, str] | None = None,
        custom_hooks: Mapping[str, Callable[[Any, Path], Any]] | None = None,
        conditions: Mapping[str, Any] | None = None,
    ) -> None:
        self.loadables: dict[str, Any] = {}
        self.paths: dict[str, str] = dict(paths or {})
        self.custom_hooks = dict(custom_hooks or {})
        self.conditions = dict(conditions or {})
        self.collect_in: Path | None = None
        self._collected: dict[str, Path] = {}
        self.set_collect_in(collect_in)
        self.add_loadables(loadables or {})

    def set_collect_in(self, path: str | Path | None) -> None:
        """Change the directory to collect in."""
        self.collect_in = None if path is None else Path(path)

    def add_loadables(self, loadables: Mapping[str, Any]) -> None:
        """Add objects by name."""
        for name in loadables:
            check_name(name, "the name of a loadable")
        self.loadables.update(loadables)

    def add_paths(self, paths: Mapping[str, str]) -> None:
        """Add where files are, by the names of their objects."""
        self.paths.update(paths)

    def add_custom_hooks(self, custom_hooks: Mapping[str, Callable[[Any, Path], Any]]) -> None:
        """Add hooks by the names of their objects."""
        self.custom_hooks.update(custom_hooks)

    def add_conditions(self, conditions: Mapping[str, Any]) -> None:
        """Add conditions by the names of their objects."""
        self.conditions.update(conditions)

    @staticmethod
    def split_path(path: str) -> tuple[str, str]:
        """Return the source and the file's name of a path."""
        source, separator, name = path.rpartition("/")
        return (source, name) if separator else ("./", name)

    def is_loadable(self, name: str) -> bool:
        """Say whether an object's condition holds; one without a condition is always loaded."""
        condition = self.conditions.get(name, True)
        return bool(condition() if callable(condition) else condition)

    def collect_files(
        self,
        default_source: str | Path | None = None,
        local_strategy: Literal["symlink", "copy"] = "symlink",
    ) -> dict[str, Path]:
        """Bring the file of each object into the directory, as ``<name>.ckpt``.

        Parameters
        ----------
        default_source : str or Path, optional
            Where ``<name>.ckpt`` is for objects without a path.
        local_strategy : str
            "symlink" or "copy", for files that are on this machine.

        Returns
        -------
        dict of str to Path
            Where each file is now.

        Raises
        ------
        ValueError
            If an object has no path.
        FileNotFoundError
            If a file is not there.
        """
        for name in filter(self.is_loadable, self.loadables):
            source = self.paths.get(name)
            if source is None:
                if default_source is None:
                    raise ValueError(
                        f"every loadable needs a path or a default_source, got neither for "
                        f"{name!r}; add paths={{{name!r}: ...}}"
                    )
                source = f"{os.fspath(default_source)}/{name}{PARAMFILE_EXT}"
            self._collected[name] = main_process_only(self._fetch)(name, source, local_strategy)
        ddp_barrier()
        return dict(self._collected)

    def load_collected(self) -> None:
        """Load the collected files into their objects.

        Raises
        ------
        ValueError
            If an object's file was never collected.
        """
        for name in filter(self.is_loadable, self.loadables):
            path = self._collected.get(name)
            if path is None:
                if self.collect_in is None:
                    raise ValueError(
                        f"a file is collected before it is loaded, got none for {name!r}; call "
                        f"collect_files(), or say collect_in=..."
                    )
                path = self.collect_in / f"{name}{PARAMFILE_EXT}"
            self._load(name, self.loadables[name], path)

    def _fetch(self, name: str, source: str, local_strategy: str) -> Path:
        remote = "://" in source
        if self.collect_in is None and not remote:
            return _existing(Path(source), name)
        if self.collect_in is None:
            raise ValueError(
                f"a URL is collected into a directory, got {source!r} and collect_in=None; say "
                f"collect_in=..."
            )
        self.collect_in.mkdir(parents=True, exist_ok=True)
        target = self.collect_in / f"{name}{PARAMFILE_EXT}"
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.unlink(missing_ok=True)
        if remote:
            _download(source, partial)
        elif local_strategy == "copy":
            shutil.copyfile(_existing(Path(source), name), partial)
        else:
            found = _existing(Path(source), name).resolve()
            if target.exists() and found == target.resolve():
                return target
            partial.symlink_to(found)
        partial.replace(target)
        return target

    def _load(self, name: str, obj: Any, path: Path) -> None:
        custom = self.custom_hooks.get(name)
        transfer = find_transfer(obj)
        if custom is not None:
            custom(obj, path)
        elif transfer is not None:
            transfer(path)
        elif (loader := find_loader(obj, None, HookRegistry())) is not None:
            loader.call(path, False)  # noqa: FBT003 - positional, as marked loaders are called
        elif isinstance(obj, torch.nn.Module):
            torch_parameter_transfer(obj, path)
        else:
            torch_recovery(obj, path, False)  # noqa: FBT003 - positional, as loaders are called


def _existing(path: Path, name: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(
            f"the file for {name!r} has to be there, got {os.fspath(path)!r}; correct its path"
        )
    return path


def _download(source: str, target: Path) -> None:
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(
            f"URLs such as {source!r} are read with fsspec, which is not installed; run "
            f"pip install 'brain-ckpt[fsspec]'"
        ) from error
    with fsspec.open(source, "rb") as content, target.open("wb") as file:
        shutil.copyfileobj(content, file)
