"""Buffers that forwards write, such as BatchNorm's running statistics: undone with the step."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["BufferGuard"]

_SMALL = 4096  # elements; buffers up to this size are kept whether they were written or not


@dataclass(eq=False)
class _Buffer:
    """A place of a module that holds a buffer, and the tensor that is there."""

    place: dict[str, Any]
    name: str
    tensor: torch.Tensor
    version: int

    def is_replaced(self) -> bool:
        # The mapping of a scripted module has no get.
        return self.name not in self.place or self.place[self.name] is not self.tensor

    def is_written(self) -> bool:
        """Whether torch has counted a write; batch norm's own kernels are not counted."""
        return self.is_replaced() or _version(self.tensor) != self.version

    def refresh(self) -> None:
        self.tensor = self.place[self.name]
        self.version = _version(self.tensor)


class BufferGuard:
    """A copy of the buffers that forwards write, taken where each accumulation window begins.

    If the window's step is skipped because a loss or gradient is not finite, the buffers are set
    back, as the parameters were not changed either: one batch with a NaN would otherwise leave
    BatchNorm's running statistics NaN for the rest of the training.

    In the first window all buffers are copied. After it, those that it did not write are copied
    no more if they are large, until torch counts a write to them.
    """

    def __init__(self) -> None:
        self._copied: list[_Buffer] = []
        self._unwritten: list[_Buffer] = []
        self._groups: list[_Group] = []
        self._known: dict[tuple[int, str], _Buffer] = {}
        self._has_copy = False
        self._is_first_window = False

    def watch(self, module: torch.nn.Module) -> None:
        """Find the buffers of ``module``; called where an epoch begins."""
        places = {(id(place), name): (place, name) for place, name in _places(module)}
        if places.keys() == self._known.keys():
            return
        self._known = {
            key: _Buffer(place, name, place[name], _version(place[name]))
            for key, (place, name) in places.items()
        }
        self._copied, self._unwritten, self._groups = list(self._known.values()), [], []
        self._is_first_window = True
        self.forget()

    def remember(self) -> None:
        """Copy the buffers, before the first forward of a window."""
        if not self._known:
            return
        late = [buffer for buffer in self._unwritten if buffer.is_written()]
        if late:
            self._unwritten = [buffer for buffer in self._unwritten if buffer not in late]
            self._copied += late
        if late or not self._groups or any(buffer.is_replaced() for buffer in self._copied):
            self._regroup()
        for group in self._groups:
            group.copy()
        self._has_copy = True

    def forget(self) -> None:
        """Accept what the window wrote."""
        if self._is_first_window and self._has_copy:
            self._is_first_window = False
            self._drop_unwritten()
        self._has_copy = False

    def restore(self) -> None:
        """Set the buffers back to the last `remember`; without one, do nothing."""
        if self._has_copy:
            for buffer in self._copied:
                buffer.place[buffer.name] = buffer.tensor
            for group in self._groups:
                group.restore()
        self._has_copy = False

    def can_restore_on_device(self) -> bool:
        """Return whether `restore_where` can be called: no module has replaced a buffer."""
        return not (self._has_copy and any(buffer.is_replaced() for buffer in self._copied))

    def restore_where(self, flag: torch.Tensor) -> None:
        """Set the buffers back to the last `remember` if ``flag``, a scalar, is not zero.

        The flag is not read: a device decides by itself.
        """
        for group in self._groups if self._has_copy else ():
            group.restore_where(flag)

    def _regroup(self) -> None:
        """Group the buffers that one call of torch can copy."""
        for buffer in self._copied:
            buffer.refresh()
        tensors = {id(buffer.tensor): buffer.tensor for buffer in self._copied}.values()
        ordered = sorted(tensors, key=_group_key)
        self._groups = [_Group(list(group)) for _, group in groupby(ordered, key=_group_key)]

    def _drop_unwritten(self) -> None:
        written = {id(tensor) for group in self._groups for tensor in group.written()}
        keep: list[_Buffer] = []
        drop: list[_Buffer] = []
        for buffer in self._copied:
            is_kept = (
                buffer.is_replaced()
                or id(buffer.tensor) in written
                or buffer.tensor.numel() <= _SMALL
            )
            (keep if is_kept else drop).append(buffer)
        for buffer in drop:
            buffer.refresh()
        self._copied, self._unwritten, self._groups = keep, drop, []


class _Group:
    """Buffers of one dtype and device, copied into one tensor by one call; or a single buffer."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._tensors = tensors
        self._views = [_flat(tensor) for tensor in tensors]
        # A subclass such as DTensor, and what is not contiguous, is copied alone.
        self._copy = torch.cat(self._views) if _is_flat(tensors[0]) else tensors[0].clone()

    @torch.no_grad()
    def copy(self) -> None:
        if _is_flat(self._tensors[0]):
            torch.cat(self._views, out=self._copy)
        else:
            self._copy.copy_(self._tensors[0])

    @torch.no_grad()
    def restore(self) -> None:
        for view, kept in zip(self._views, self._kept(), strict=True):
            view.copy_(kept)

    @torch.no_grad()
    def restore_where(self, flag: torch.Tensor) -> None:
        if _is_flat(self._tensors[0]):
            present = torch.cat(self._views)
            chosen = torch.where(flag.to(present.device) != 0, self._copy, present)
            torch._foreach_copy_(self._views, torch.split(chosen, self._sizes()))
        else:
            self._views[0].copy_(torch.where(flag != 0, self._copy, self._views[0]))

    def written(self) -> Iterator[torch.Tensor]:
        """Return the tensors that differ from their copies."""
        for tensor, view, kept in zip(self._tensors, self._views, self._kept(), strict=True):
            if not _is_flat(tensor) or not torch.equal(view, kept):
                yield tensor

    def _kept(self) -> Iterable[torch.Tensor]:
        if _is_flat(self._tensors[0]):
            return torch.split(self._copy, self._sizes())
        return (self._copy,)

    def _sizes(self) -> list[int]:
        return [view.numel() for view in self._views]


def _version(tensor: torch.Tensor) -> int:
    """Return torch's count of the writes to a tensor."""
    return tensor._version  # noqa: SLF001  # as torch.autograd's own checks do


def _is_flat(tensor: torch.Tensor) -> bool:
    """Whether the tensor can be seen as one row, without a copy."""
    return type(tensor) in {torch.Tensor, torch.nn.Buffer} and tensor.is_contiguous()


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(-1) if _is_flat(tensor) else tensor.detach()


def _group_key(tensor: torch.Tensor) -> tuple[str, str, int]:
    return str(tensor.dtype), str(tensor.device), 0 if _is_flat(tensor) else id(tensor)


def _places(module: torch.nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Return where buffers of dense numbers stand."""
    for owner in module.modules():
        place = owner.__dict__.get("_buffers")
        if place is None:  # of a scripted module, whose buffers cannot be replaced
            place = dict(owner.named_buffers(recurse=False))
        for name, tensor in place.items():
            if tensor is not None and tensor.layout is torch.strided and not tensor.is_meta:
                yield place, name
