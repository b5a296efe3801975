"""Compiling modules, by ``torch.compile`` or ``torch.jit``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from ._suggest import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._options import RunOptions


__all__ = ["compile_modules"]

logger = logging.getLogger(__name__)


def compile_modules(modules: torch.nn.ModuleDict, options: RunOptions) -> None:
    """Compile the modules that ``options`` asks for; one asked for by both is not scripted.

    ``torch.compile`` works on a module in place, so no name in its ``state_dict`` changes. A
    scripted module takes the place of the one it was made from and shares its parameters.

    Raises
    ------
    ValueError
        For a key that is not among the modules.
    """
    compiled = _selected(options.compile, options.compile_module_keys, modules, "compile")
    scripted = _selected(options.jit, options.jit_module_keys, modules, "jit")
    for name in compiled:
        modules[name].compile(
            mode=options.compile_mode,
            fullgraph=options.compile_using_fullgraph,
            dynamic=options.compile_using_dynamic_shape_tracing,
        )
    for name in scripted:
        if name not in compiled:
            modules[name] = torch.jit.script(modules[name])


def _selected(
    enabled: bool,
    keys: Iterable[str] | None,
    modules: torch.nn.ModuleDict,
    option: str,
) -> list[str]:
    if not enabled:
        return []
    if keys is None:
        return list(modules)
    for key in keys:
        if key not in modules:
            raise ValueError(
                f"{option}_module_keys must name modules of the Brain ({', '.join(modules)}), "
                f"got {key!r}.{nearest(key, list(modules))}"
            )
    return list(keys)
