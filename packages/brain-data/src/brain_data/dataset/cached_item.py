"""Dynamic items whose values are stored in files."""

from __future__ import annotations

import io
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch

from brain_data.dataset.items import DynamicItem, GeneratorDynamicItem

if TYPE_CHECKING:
    import os
    from collections.abc import Callable


class CachedDynamicItem(DynamicItem):
    """An item that is computed once for each row and then read from a folder.

    The file is ``<id>.pt``, so the first key that the item takes must be ``"id"``, and each cached
    item needs a folder of its own. A change of the function is not detected: empty the folder.
    Files are published by a rename, so several workers may write to one folder, and a run that is
    killed leaves no partial file.

    A subclass that stores values elsewhere replaces the methods ``_is_cached(uid)``, ``_load(uid)``
    and ``_cache(result, uid)``, or ``_uid2path(uid)``, as in SpeechBrain.

    Parameters
    ----------
    cache_location : path
        Folder of the files; created if it does not exist.
    *args, **kwargs
        As for :class:`DynamicItem`.
    """

    def __init__(self, cache_location: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.takes:
            raise ValueError(
                "Expected 'takes' list to have at least one item, but 'takes' is empty: "
                "write @takes('id', ...)."
            )
        if self.takes[0] != "id":
            raise ValueError(
                "First item in 'takes' list must be 'id', which is the name of the file; got "
                f"takes={list(self.takes)!r}: write @takes('id', ...)."
            )
        self.cache_location = Path(cache_location)
        self.cache_location.mkdir(parents=True, exist_ok=True)
        self._checked = False

    def __call__(self, *args: Any) -> Any:
        """Read the item of row ``args[0]``, or compute and store it."""
        uid = args[0]
        if self._is_cached(uid):
            try:
                return self._load(uid)
            except Exception as error:  # noqa: BLE001 - any unreadable value is replaced
                warnings.warn(
                    f"The value of {uid!r} in {self.cache_location} cannot be read and is "
                    f"computed again: {error}",
                    stacklevel=2,
                )
        result = super().__call__(*args)
        self._cache(result, uid)
        return result

    @classmethod
    def cache(cls, save_dir: str | os.PathLike[str]) -> Callable[[DynamicItem], CachedDynamicItem]:
        """Decorate an item so that it is cached in ``save_dir``.

        Examples
        --------
        >>> import tempfile
        >>> from brain_data import provides, takes
        >>> @CachedDynamicItem.cache(tempfile.mkdtemp())
        ... @takes("id", "text")
        ... @provides("words")
        ... def split(uid, text):
        ...     return text.split()
        >>> split("row1", "a b"), split("row1", "not computed again")
        (['a', 'b'], ['a', 'b'])
        """

        def decorator(obj: DynamicItem) -> CachedDynamicItem:
            if not isinstance(obj, DynamicItem) or isinstance(obj, GeneratorDynamicItem):
                raise ValueError(  # noqa: TRY004 - SpeechBrain raises ValueError here
                    "Can only cache a DynamicItem that returns its value; got "
                    f"{obj!r}: put @CachedDynamicItem.cache above @takes and @provides."
                )
            return cls(save_dir, takes=obj.takes, func=obj.func, provides=obj.provides)

        return decorator

    def _is_cached(self, uid: Any) -> bool:
        """Return whether the value of a row is stored."""
        return self._uid2path(uid).exists()

    def _load(self, uid: Any) -> Any:
        """Return the stored value of a row."""
        return torch.load(self._uid2path(uid), weights_only=True)

    def _cache(self, result: Any, uid: Any) -> None:
        """Store the value of a row."""
        path = self._uid2path(uid)
        buffer = io.BytesIO()
        torch.save(result, buffer)
        if not self._checked:
            self._check_readable(buffer, result)
            self._checked = True
        # Several workers may write one item at the same time: each renames a file of its own.
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(buffer.getvalue())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _uid2path(self, uid: Any) -> Path:
        """Return the path of the file of a row."""
        # An id with a slash is one file in this folder, too.
        return self.cache_location / (quote(str(uid), safe=" +,=@()[]{}!$&;'~") + ".pt")

    def _check_readable(self, buffer: io.BytesIO, result: Any) -> None:
        buffer.seek(0)
        try:
            torch.load(buffer, weights_only=True)
        except Exception as error:
            raise TypeError(
                "A cached item must consist of tensors, numbers, strings, lists and dicts, which "
                f"are read without running code; {list(self.provides)!r} is a "
                f"{type(result).__name__}: return torch.as_tensor(...) of it, for example."
            ) from error
