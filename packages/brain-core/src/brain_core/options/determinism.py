"""Deterministic algorithms, and a log of what cannot be made deterministic."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["deterministic_algorithms", "prepare_determinism"]

logger = logging.getLogger(__name__)

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_SETTINGS = (":4096:8", ":16:8")  # the two that NVIDIA calls reproducible
_TORCH_WARNING = ".*(does not have a deterministic implementation|is not deterministic because)"


def prepare_determinism(device: str | None, compile_mode: str | None = None) -> list[str]:
    """Prepare for deterministic algorithms before a device is used; log what stays random.

    The CUBLAS variable stays set: CUDA reads it once. Loader workers need nothing: a loader seeds
    them by (seed, epoch, position) in any case.

    Parameters
    ----------
    device : str, optional
        The device to train on; None means the best one available.
    compile_mode : str, optional
        Of ``torch.compile``, where it is used.

    Returns
    -------
    list of str
        What cannot be made deterministic, as it is logged.
    """
    nondeterministic = []
    if (device or "cuda").startswith("cuda") and torch.cuda.is_available():
        nondeterministic += _prepare_cublas()
    if os.environ.get("PYTHONHASHSEED", "random") == "random":
        nondeterministic.append(
            "the order of sets of strings, which PYTHONHASHSEED decides before Python starts: set "
            "it to a number, or sort them"
        )
    if not torch.utils.deterministic.fill_uninitialized_memory:  # type: ignore[attr-defined]  # torch's
        nondeterministic.append(
            "memory that is read before it is written, since "
            "torch.utils.deterministic.fill_uninitialized_memory is off"
        )
    if (compile_mode or "").startswith("max-autotune"):
        nondeterministic.append(
            f"compile_mode={compile_mode}, which chooses kernels by their speed"
        )
    for reason in nondeterministic:
        logger.warning("Could not be made deterministic: %s.", reason)
    return nondeterministic


@contextmanager
def deterministic_algorithms(wanted: bool = True) -> Iterator[None]:
    """Use deterministic algorithms in this context, and restore torch's flags after it.

    An operation without a deterministic algorithm runs anyway and is named in the log, once.
    TorchScript does not optimize.

    Parameters
    ----------
    wanted : bool
        False changes nothing.
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    former = torch.get_deterministic_debug_mode()  # 0: off, 1: it warns, 2: it raises
    former_cudnn = (cudnn.deterministic, cudnn.benchmark)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", message=_TORCH_WARNING)
            _log_each_operation_once()
            if not former:
                torch.use_deterministic_algorithms(mode=True, warn_only=True)
            cudnn.deterministic, cudnn.benchmark = True, False
            # TorchScript computes its first calls with other kernels than those that follow.
            with torch.jit.optimized_execution(should_optimize=False):  # type: ignore[attr-defined,no-untyped-call,unused-ignore]  # torch's
                yield
    finally:
        torch.use_deterministic_algorithms(mode=former > 0, warn_only=former == 1)
        cudnn.deterministic, cudnn.benchmark = former_cudnn


def _prepare_cublas() -> list[str]:
    setting = os.environ.get(_CUBLAS)
    if setting in _CUBLAS_SETTINGS:
        return []
    if setting is not None:
        return [f"cuBLAS, since {_CUBLAS} is {setting!r}: make it {_CUBLAS_SETTINGS[0]}"]
    os.environ[_CUBLAS] = _CUBLAS_SETTINGS[0]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's
        late = f"cuBLAS, since CUDA was in use before {_CUBLAS} was set: set it to "
        return [f"{late}{_CUBLAS_SETTINGS[0]} before the script starts"]
    return []


def _log_each_operation_once() -> None:
    """Log torch's warning of each operation once, until `warnings.catch_warnings` ends."""
    show = warnings.showwarning
    logged: set[str] = set()

    def log_or_show(message: Any, *args: Any, **kwargs: Any) -> None:
        text = str(message)
        if "not have a deterministic impl" not in text and "not deterministic because" not in text:
            show(message, *args, **kwargs)
            return
        operation = text.split(" ", 1)[0] if "implementation" in text else "cuBLAS"
        if operation not in logged:
            logged.add(operation)
            logger.warning("Could not be made deterministic: the operation %s.", operation)

    warnings.showwarning = log_or_show
