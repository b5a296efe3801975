"""The containers of a recipe's modules and hyperparameters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["HParams", "Modules", "as_modules", "describe_parameters"]


class HParams(SimpleNamespace):
    """The hyperparameters as attributes; an error names a missing one, and those that there are."""

    def __getattr__(self, name: str) -> Any:
        """Raise an AttributeError that names what is missing."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(_missing("hparams", name, vars(self)), name=name, obj=self)


class Modules(torch.nn.ModuleDict):
    """The modules as attributes and keys; an error names a missing one, and those there are."""

    def __getattr__(self, name: str) -> Any:
        """Return a module, or raise an AttributeError that lists the modules."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            message = _missing("modules", name, self._modules)
            raise AttributeError(message, name=name, obj=self) from None


def _missing(container: str, name: str, known: Iterable[str]) -> str:
    # The nearest name is not looked for here, as a recipe may call `hasattr` in each batch. Python
    # does it when it prints the traceback, given name and obj of the error.
    return (
        f"{container} must hold {name!r} because the recipe reads it, but only "
        f"{', '.join(known) or 'nothing'} was given"
    )


def describe_parameters(name: str, modules: torch.nn.Module) -> str:
    """Return a sentence with the number of parameters, and a table of the modules if several.

    Examples
    --------
    >>> parts = torch.nn.ModuleDict({"a": torch.nn.Linear(9, 99), "head": torch.nn.Linear(9, 1)})
    >>> print(describe_parameters("Net", parts.requires_grad_(False)))
    Net has 1.0k parameters, 0 of them trainable (0.00%).
      module  parameters  trainable
      a              990      0.00%
      head            10      0.00%
    """
    total, trainable, share = _count(modules)
    sentence = (
        f"{name} has {_with_unit(total)} parameters, {_with_unit(trainable)} of them trainable "
        f"({share})."
    )
    parts = dict(modules.named_children())
    if len(parts) <= 1:
        return sentence
    width = max(map(len, ("module", *parts)))
    lines = [f"  {'module':{width}}  parameters  trainable"]
    for part, module in parts.items():
        size, _, share = _count(module)
        lines.append(f"  {part:{width}}  {_with_unit(size):>10}  {share:>9}")
    return "\n".join([sentence, *lines])


def as_modules(modules: Mapping[str, torch.nn.Module] | None, device: str) -> Modules:
    """Move modules to the device, and return them in a container.

    Raises
    ------
    TypeError
        For a value that is no module.
    ValueError
        For a module with parameters that are not initialized yet, such as ``LazyLinear``.
    """
    if not hasattr(modules or {}, "items"):
        raise TypeError(
            "modules must be a dict of torch.nn.Module objects by name, got "
            f"{type(modules).__name__}. "
            'Write modules={"model": model}.'
        )
    for name, module in (modules or {}).items():
        if not isinstance(module, torch.nn.Module):
            raise TypeError(
                f"modules must hold torch.nn.Module objects, got {module!r} as {name!r}. "
                "Put anything else into hparams."
            )
    container = Modules(modules)
    lazy = [
        name
        for name, tensor in (*container.named_parameters(), *container.named_buffers())
        if torch.nn.parameter.is_lazy(tensor)
    ]
    if lazy:
        raise ValueError(
            f"The parameters of modules must be initialized, got lazy ones: {', '.join(lazy)}. "
            "Run the module on one example batch before you make the Brain, for instance\n"
            f"    with torch.no_grad():\n        modules[{lazy[0].split('.')[0]!r}](example)"
        )
    return container.to(device)


def _count(module: torch.nn.Module) -> tuple[int, int, str]:
    """Return the number of parameters, of trainable ones, and the share of these."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    total = sum(size for size, _ in sizes)
    trainable = sum(size for size, is_trained in sizes if is_trained)
    return total, trainable, f"{100 * trainable / total if total else 0.0:.2f}%"


def _with_unit(number: float) -> str:
    """Return a count in a short form.

    Examples
    --------
    >>> _with_unit(950), _with_unit(1_234_567)
    ('950', '1.2M')
    """
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)
