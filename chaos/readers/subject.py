"""The objects that are saved: each holds the number of its save, so that a mixture is visible."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from brain_ckpt import Checkpointer, mark_as_loader, mark_as_saver, register_checkpoint_hooks

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Subject", "loss_of"]

_SIZE = 64
_LOSSES = 97


@register_checkpoint_hooks
class Counter:
    """Writes its file itself."""

    number = 0

    @mark_as_saver
    def save(self, path: Path) -> None:
        """Write the number as text."""
        path.write_text(str(self.number), encoding="utf-8")

    @mark_as_loader
    def load(self, path: Path, end_of_epoch: bool) -> None:
        """Read the number."""
        del end_of_epoch
        self.number = int(path.read_text(encoding="utf-8"))


def loss_of(number: int) -> float:
    """Return the metric of a save."""
    return (number * 31 % _LOSSES) / _LOSSES


class Subject:
    """A model, an optimizer and a counter with a checkpointer.

    Parameters
    ----------
    directory : Path
        The directory of checkpoints.
    ranks : int
        The number of ranks that the model is sharded over; 1 does not shard it.
    options
        Arguments of the checkpointer.
    """

    def __init__(self, directory: Path, ranks: int = 1, **options: Any) -> None:
        self.model = torch.nn.Linear(_SIZE, _SIZE)
        if ranks > 1:
            _shard(self.model, ranks)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.counter = Counter()
        self.checkpointer = Checkpointer(
            directory,
            {"model": self.model, "optimizer": self.optimizer, "counter": self.counter},
            **options,
        )

    def fill(self, number: int) -> dict[str, Any]:
        """Set all states to a number, and return the meta of its save."""
        self.counter.number = number
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(number)
                momentum = torch.full_like(parameter, number)
                self.optimizer.state[parameter]["momentum_buffer"] = momentum
        return {"number": number, "loss": loss_of(number)}

    def numbers(self) -> set[int]:
        """Return the different numbers in all states."""
        found = {self.counter.number}
        for parameter in self.model.parameters():
            momentum = self.optimizer.state[parameter]["momentum_buffer"]
            for tensor in (parameter, momentum):
                found |= {int(value) for value in tensor.detach().unique().tolist()}
        return found


def _shard(model: torch.nn.Module, ranks: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (ranks,))
    for name, parameter in list(model.named_parameters()):
        part = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
        setattr(model, name, torch.nn.Parameter(part))
