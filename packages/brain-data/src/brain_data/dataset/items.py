"""Items of a data pipeline: what a row holds, and what is computed from it."""

from __future__ import annotations

import inspect
import io
import uuid
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import torch

if TYPE_CHECKING:
    import os

Keys = Sequence[str]


@dataclass
class StaticItem:
    """An item that lies in the row itself, under ``key``."""

    key: str


class DynamicItem:
    """A function with the keys of its arguments and of its results.

    Usually made by :func:`takes` and :func:`provides`.

    Parameters
    ----------
    takes : sequence of str
        Keys of the items that the function is called with, in order.
    func : callable
        Computes the item.
    provides : sequence of str
        Keys of what it returns. With one key the returned value is the item; with several, it
        must return as many values.
    """

    def __init__(
        self,
        takes: Keys | None = None,
        func: Callable[..., Any] | None = None,
        provides: Sequence[Any] | None = None,
    ) -> None:
        self.takes: Keys = takes if takes is not None else []
        self.func = func
        self.provides: Sequence[Any] = provides if provides is not None else []

    def __call__(self, *args: Any) -> Any:
        """Compute the item from its arguments."""
        if self.func is None:
            raise TypeError(
                f"An item needs a function; {self.provides!r} has none: pass func=, or decorate "
                "the function with @takes and @provides."
            )
        return self.func(*args)

    def next_takes(self) -> Keys:
        """Keys of the arguments of the next call."""
        return self.takes

    def next_provides(self) -> Keys:
        """Keys of what the next call returns."""
        return self.provides

    def provided_in_order(self) -> list[Keys]:
        """Keys that each of the calls in one pass over the pipeline provides."""
        return [self.provides]

    def reset(self) -> None:
        """Forget what a pass over the pipeline has left here."""


class GeneratorDynamicItem(DynamicItem):
    """A generator function that provides its items one ``yield`` at a time.

    What comes after a ``yield`` runs only if a later key is asked for, so a first key can be used
    to fit what the second one needs (a vocabulary, say). ``provides`` has one entry for each
    ``yield``: a key, or a list of keys when several values are yielded at once.

    Examples
    --------
    >>> @takes("text")
    ... @provides("words", "count")
    ... def split(text):
    ...     words = text.split()
    ...     yield words
    ...     yield len(words)
    >>> split("this is it"), split()
    (['this', 'is', 'it'], 3)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.current_generator: Generator[Any, Any, Any] | None = None
        self.num_provided_items = 0

    def __call__(self, *args: Any) -> Any:
        """Give what the generator yields next; the first call starts it."""
        if self.num_provided_items == len(self.provides):
            raise RuntimeError(
                f"A generator item is called once for each of its {len(self.provides)} keys; "
                f"{self.provides!r} was called again: call reset() between rows."
            )
        if self.current_generator is None:
            self.current_generator = super().__call__(*args)
        out = next(self.current_generator)
        self.num_provided_items += 1
        return out

    def next_takes(self) -> Keys:
        """Keys of the arguments of the next call: none once the generator runs."""
        return self.takes if self.current_generator is None else []

    def next_provides(self) -> Keys:
        """Keys of what the next ``yield`` gives."""
        return _as_list(self.provides[self.num_provided_items])

    def provided_in_order(self) -> list[Keys]:
        """Keys of each ``yield``, in order."""
        return [_as_list(keys) for keys in self.provides]

    def reset(self) -> None:
        """Close the running generator, so that the next call starts a new one."""
        if self.current_generator is not None:
            self.current_generator.close()
        self.current_generator = None
        self.num_provided_items = 0


class CachedDynamicItem(DynamicItem):
    """An item that is computed once for each row and then read back from a folder.

    The file is ``<id>.pt``, so the first key it takes must be ``"id"``, and each cached item
    needs a folder of its own. Nothing notices that the function has changed: empty the folder.
    Files are published by a rename, so several workers may fill one folder, and a run that is
    killed leaves no half file.

    Parameters
    ----------
    cache_location : path
        Folder of the files; made if it is not there.
    *args, **kwargs
        As for :class:`DynamicItem`.
    """

    def __init__(self, cache_location: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self.takes or self.takes[0] != "id":
            raise ValueError(
                "A cached item must take 'id' first, which names its file; got "
                f"takes={list(self.takes)!r}: write @takes('id', ...)."
            )
        self.cache_location = Path(cache_location)
        self.cache_location.mkdir(parents=True, exist_ok=True)
        self._checked = False

    def __call__(self, *args: Any) -> Any:
        """Read the item of row ``args[0]``, or compute and keep it."""
        path = self._path(args[0])
        if path.exists():
            try:
                return torch.load(path, weights_only=True)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it can be made again
                warnings.warn(f"{path} cannot be read and is made again: {error}", stacklevel=2)
        result = super().__call__(*args)
        self._keep(result, path)
        return result

    @classmethod
    def cache(cls, save_dir: str | os.PathLike[str]) -> Callable[[DynamicItem], CachedDynamicItem]:
        """Decorate an item so that it is cached in ``save_dir``.

        Examples
        --------
        >>> import tempfile
        >>> @CachedDynamicItem.cache(tempfile.mkdtemp())
        ... @takes("id", "text")
        ... @provides("words")
        ... def split(uid, text):
        ...     return text.split()
        >>> split("row1", "a b"), split("row1", "is not looked at again")
        (['a', 'b'], ['a', 'b'])
        """

        def decorator(obj: DynamicItem) -> CachedDynamicItem:
            if not isinstance(obj, DynamicItem) or isinstance(obj, GeneratorDynamicItem):
                raise ValueError(  # noqa: TRY004 - SpeechBrain raises ValueError here
                    "Only an item that returns its value can be cached; got "
                    f"{obj!r}: put @CachedDynamicItem.cache above @takes and @provides."
                )
            return cls(save_dir, takes=obj.takes, func=obj.func, provides=obj.provides)

        return decorator

    def _path(self, uid: object) -> Path:
        # An id with a slash stays one file in this folder.
        return self.cache_location / (quote(str(uid), safe=" +,=@()[]{}!$&;'~") + ".pt")

    def _keep(self, result: Any, path: Path) -> None:
        buffer = io.BytesIO()
        torch.save(result, buffer)
        if not self._checked:
            self._check_readable(buffer, result)
            self._checked = True
        # Workers of several processes may write one item at once: each has its own file to rename.
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(buffer.getvalue())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _check_readable(self, buffer: io.BytesIO, result: Any) -> None:
        buffer.seek(0)
        try:
            torch.load(buffer, weights_only=True)
        except Exception as error:
            raise TypeError(
                "A cached item must be made of tensors, numbers, strings, lists and dicts, so that "
                f"it is read back without running code; {list(self.provides)!r} is a "
                f"{type(result).__name__}: return torch.as_tensor(...) of it, for instance."
            ) from error


def takes(*argkeys: str) -> Callable[[Any], DynamicItem]:
    """Decorate a function, generator function or item with the keys that it takes.

    Examples
    --------
    >>> @takes("text")
    ... @provides("words")
    ... def split(text):
    ...     return text.split()
    >>> split("a b")
    ['a', 'b']
    """

    def decorator(obj: Any) -> DynamicItem:
        if isinstance(obj, DynamicItem):
            if obj.takes:
                raise ValueError(
                    f"An item takes its keys once; it has {list(obj.takes)!r}, and got "
                    f"{list(argkeys)!r}: use one @takes with all of them."
                )
            obj.takes = argkeys
            return obj
        return _item_class(obj)(takes=argkeys, func=obj)

    return decorator


def provides(*output_keys: Any) -> Callable[[Any], DynamicItem]:
    """Decorate a function, generator function or item with the keys that it provides.

    With several keys a function returns as many values, and a generator yields them one by one; a
    list among the keys is several values in one ``yield``.

    Examples
    --------
    >>> @provides("wav", ["left", "right"])
    ... def read():
    ...     yield [0.1, 0.2]
    ...     yield 0.1, 0.2
    >>> read.provided_in_order()
    [['wav'], ['left', 'right']]
    """

    def decorator(obj: Any) -> DynamicItem:
        if isinstance(obj, DynamicItem):
            if obj.provides:
                raise ValueError(
                    f"An item provides its keys once; it has {list(obj.provides)!r}, and got "
                    f"{list(output_keys)!r}: use one @provides with all of them."
                )
            obj.provides = output_keys
            return obj
        return _item_class(obj)(func=obj, provides=output_keys)

    return decorator


def _item_class(func: Any) -> type[DynamicItem]:
    return GeneratorDynamicItem if inspect.isgeneratorfunction(func) else DynamicItem


def _as_list(keys: Any) -> list[str]:
    return [keys] if isinstance(keys, str) else list(keys)
