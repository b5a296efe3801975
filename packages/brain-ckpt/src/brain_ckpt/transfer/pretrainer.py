"""Collect pretrained parameters from files and URLs, and load them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt.loading.state_file import (
    open_state_file,
    read_current,
    read_state_file,
    reading_without_manifest,
)
from brain_ckpt.recoverables.hooks import (
    HookRegistry,
    find_loader,
    find_transfer,
)
from brain_ckpt.recoverables.states import set_state
from brain_ckpt.storage.layout import PARAMFILE_EXT, PREFIX, check_name
from brain_ckpt.storage.manifest import MANIFEST_NAME
from brain_ckpt.transfer.parameters import torch_parameter_transfer
from brain_dist import ddp_barrier, main_process_only

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_STRATEGIES = {
    "symlink": "symlink", "copy": "copy", "copy_skip_cache": "copy", "no_link": "no_link",
}  # fmt: skip


class Pretrainer:
    """Collects files with pretrained parameters and loads each into its object.

    Parameters
    ----------
    collect_in : str or Path, optional
        The directory to collect in; None uses files where they are.
    loadables : mapping of str to object
        The objects.
    paths : mapping of str to str
        The file of each object: a path, or a URL that fsspec (an extra) can read, such as
        "https://...", "s3://..." or "hf://user/repository/model.ckpt".  A file of a checkpoint in
        a mirror, "s3://bucket/runs/7/CKPT+.../model.ckpt", is verified on its way.
    custom_hooks : mapping of str to callable
        ``hook(obj, path)`` for objects that are not loaded as usual.
    conditions : mapping of str to bool or callable
        Objects whose condition is false are skipped.

    Notes
    -----
    An object is loaded by its custom hook; else by its method marked as transfer; else by its
    marked loader; else, if it is a module, by `torch_parameter_transfer`; else by its
    `load_state_dict`.  A tokenizer of sentencepiece is loaded with its `load`.

    Examples
    --------
    >>> import tempfile, torch
    >>> folder = tempfile.mkdtemp()
    >>> torch.save(torch.nn.Linear(2, 1).state_dict(), folder + "/old.ckpt")
    >>> model = torch.nn.Linear(2, 1)
    >>> pretrainer = Pretrainer(loadables={"model": model}, paths={"model": folder + "/old.ckpt"})
    >>> sorted(pretrainer.collect_files())
    ['model']
    >>> pretrainer.load_collected()
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
        """Add the files of objects, by the names of the objects."""
        self.paths.update(paths)

    def add_custom_hooks(self, custom_hooks: Mapping[str, Callable[[Any, Path], Any]]) -> None:
        """Add hooks, by the names of their objects."""
        self.custom_hooks.update(custom_hooks)

    def add_conditions(self, conditions: Mapping[str, Any]) -> None:
        """Add conditions, by the names of their objects."""
        self.conditions.update(conditions)

    @staticmethod
    def split_path(path: str) -> tuple[str, str]:
        """Return the directory and the file name of a path."""
        source, separator, name = path.rpartition("/")
        return (source, name) if separator else ("./", name)

    def is_loadable(self, name: str) -> bool:
        """Return whether the condition of an object is true; the default is True."""
        condition = self.conditions.get(name, True)
        return bool(condition() if callable(condition) else condition)

    def collect_files(
        self,
        default_source: str | Path | None = None,
        local_strategy: Any = "symlink",
    ) -> dict[str, Path]:
        """Collect the file of each object in the directory, as ``<name>.ckpt``.

        All ranks or only the first rank may call it.  The first rank collects the files, and an
        error is raised on all ranks.  A file that was downloaded before is not downloaded again.

        Parameters
        ----------
        default_source : str or Path, optional
            The directory or URL of ``<name>.ckpt`` for objects without a path.
        local_strategy : str
            For local files: "symlink", "copy", or "no_link", which uses them where they are.
            SpeechBrain's LocalStrategy is accepted.

        Returns
        -------
        dict of str to Path
            The collected files.

        Raises
        ------
        ValueError
            If an object has no path, or a URL or the strategy is unknown.
        FileNotFoundError
            If a file does not exist.
        CheckpointDamagedError
            If a file is in a checkpoint and differs from what was written.
        """
        strategy = _strategy(local_strategy)
        for name in filter(self.is_loadable, self.loadables):
            source = self._source(name, default_source)
            file = main_process_only(self._fetch)(name, source, strategy)
            if file is not None:  # None on other ranks before there is a process group
                self._collected[name] = file
        ddp_barrier()
        return dict(self._collected)

    def load_collected(self) -> None:
        """Load the collected files into their objects, on every rank.

        Raises
        ------
        ValueError
            If an object's file was never collected.
        FileNotFoundError
            If it no longer exists.
        """
        files = {name: self._file(name) for name in filter(self.is_loadable, self.loadables)}
        for name, path in files.items():  # before any object is changed
            _existing(path, name)
        for name, path in files.items():
            self._load(name, self.loadables[name], path)

    def _source(self, name: str, default_source: str | Path | None) -> str:
        if name in self.paths:
            return os.fspath(self.paths[name])
        if default_source is None:
            raise ValueError(
                f"a loadable needs a path or a default_source, got neither for {name!r}; add "
                f"paths={{{name!r}: ...}}"
            )
        return f"{os.fspath(default_source)}/{name}{PARAMFILE_EXT}"

    def _file(self, name: str) -> Path:
        if name in self._collected:
            return self._collected[name]
        if self.collect_in is not None:
            # Collected by the first rank only, or by an earlier run.
            return self.collect_in / f"{name}{PARAMFILE_EXT}"
        path = self.paths.get(name)
        if path is not None and not _is_url(os.fspath(path)):
            return Path(path)
        raise ValueError(
            f"a file must be collected before it is loaded, got none for {name!r}; call "
            f"collect_files(), or pass collect_in=..."
        )

    def _fetch(self, name: str, source: str, strategy: str) -> Path:
        if not _is_url(source):
            path = Path(source)
            _existing(path, name)
            read_current(_verify_member, path.resolve())
            if self.collect_in is None or strategy == "no_link":
                return path
        elif self.collect_in is None:
            raise ValueError(
                f"a URL must be collected into a directory, got {source!r} and collect_in=None; "
                f"pass collect_in=..."
            )
        self.collect_in.mkdir(parents=True, exist_ok=True)
        target = self.collect_in / f"{name}{PARAMFILE_EXT}"
        if target.exists() and _is_same(target, source):
            return target
        # Written to a temporary file first, so that a killed run leaves no partial file.
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.unlink(missing_ok=True)
        try:
            if _is_url(source):
                _download(source, partial, name)
            elif strategy == "copy":
                read_current(lambda file: _copy(file, partial), Path(source).resolve())
            else:
                partial.symlink_to(Path(source).resolve())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        origin = _origin(target)
        if _is_url(source):
            origin.write_text(source, encoding="utf-8")
        else:
            origin.unlink(missing_ok=True)
        return target

    def _load(self, name: str, obj: Any, path: Path) -> None:
        custom = self.custom_hooks.get(name)
        transfer = find_transfer(obj)
        if custom is not None:
            custom(obj, _existing(path, name))
        elif transfer is not None:
            transfer(_existing(path, name))
        elif _is_tokenizer(obj):
            obj.load(str(_existing(path, name)))
        elif (loader := find_loader(obj, None, HookRegistry())) is not None:
            # Positional, as marked loaders are called.
            loader.call(_existing(path, name), False)  # noqa: FBT003
        elif isinstance(obj, torch.nn.Module):
            torch_parameter_transfer(obj, path)
        else:
            file = path.resolve()
            state = read_current(lambda found: read_state_file(found, file.stem, obj), file)
            set_state(obj, state, file.stem)


def _strategy(given: Any) -> str:
    # SpeechBrain's LocalStrategy is an enum with these names.
    name = str(getattr(given, "name", given)).lower()
    if name not in _STRATEGIES:
        raise ValueError(
            f"local_strategy must be 'symlink', 'copy' or 'no_link', got {given!r}; use one of them"
        )
    return _STRATEGIES[name]


def _existing(path: Path, name: str) -> Path:
    """Return where the file of a path is now: there, unless its checkpoint is being replaced."""
    usual = path.resolve()
    try:
        found = read_current(lambda file: file, usual)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the file for {name!r} must exist, got {os.fspath(path)!r}; correct its path (for a "
            f"file on a server use a URL, such as hf://user/repository/{name}.ckpt)"
        ) from None
    return path if found == usual else found


def _verify_member(file: Path) -> None:
    """Verify a file of a checkpoint; other files are verified when they are read."""
    if (file.parent / MANIFEST_NAME).exists():
        with open_state_file(file):
            pass


def _copy(source: Path, target: Path) -> None:
    if not (source.parent / MANIFEST_NAME).exists():
        with reading_without_manifest(source):
            shutil.copyfile(source, target)
        return
    with open_state_file(source) as verified:
        shutil.copyfile(verified.path, target)


def _is_url(source: str) -> bool:
    return "://" in source


def _is_tokenizer(obj: Any) -> bool:
    return any(
        cls.__module__.partition(".")[0] == "sentencepiece"
        and cls.__name__ == "SentencePieceProcessor"
        for cls in type(obj).__mro__
    )


def _is_same(target: Path, source: str) -> bool:
    if not _is_url(source):
        return target.resolve() == Path(source).resolve()
    try:
        return _origin(target).read_text(encoding="utf-8") == source
    except (OSError, UnicodeDecodeError):
        return False


def _origin(target: Path) -> Path:
    """Return the file that stores the URL of a collected file."""
    return target.with_name(f".{target.name}.source")


def _download(source: str, target: Path, name: str) -> None:
    if f"/{PREFIX}+" in source:
        from brain_ckpt.mirror.single_file import download_one

        if download_one(source, target):
            return
    try:
        import fsspec
    except ImportError as error:
        raise ImportError(
            f"URLs such as {source!r} need the package fsspec, which is not installed; run "
            f"pip install 'brain-ckpt[fsspec]'"
        ) from error
    try:
        with fsspec.open(source, "rb") as content, target.open("wb") as file:
            shutil.copyfileobj(content, file)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the file for {name!r} must exist, got {source!r}; correct its path"
        ) from error
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"a URL must be readable by fsspec, got {source!r} for {name!r}: {error}; correct it, "
            f"or install the package for its protocol"
        ) from error
