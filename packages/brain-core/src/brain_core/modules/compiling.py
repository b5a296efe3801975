"""Compiling modules, by ``torch.compile`` or ``torch.jit``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from brain_core.compat import script_module
from brain_core.options.suggestion import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from brain_core.options.run_options import RunOptions

__all__ = ["compile_modules"]

logger = logging.getLogger(__name__)


def compile_modules(modules: torch.nn.ModuleDict, options: RunOptions) -> None:
    """Compile the modules that ``options`` selects; one that is compiled is not scripted.

    ``torch.compile`` works in place, so no key of the ``state_dict`` changes. A scripted module
    replaces the one it was made from and shares its parameters.

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
            modules[name] = script_module(modules[name])


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
