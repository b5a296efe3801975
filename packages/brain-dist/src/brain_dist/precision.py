"""Mixed precision, as objects that do nothing for fp32."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

import torch

if TYPE_CHECKING:
    from types import TracebackType

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class AMPConfig:
    """The dtype of automatic mixed precision.

    Parameters
    ----------
    dtype : torch.dtype
        ``torch.float32`` means none.
    """

    dtype: torch.dtype

    @classmethod
    def from_name(cls, name: str | None) -> AMPConfig:
        """Return the configuration with this name.

        Parameters
        ----------
        name : str or None
            "fp32", "fp16" or "bf16"; None means "fp32".

        Raises
        ------
        ValueError
            For any other name.
        """
        dtype = _DTYPES.get("fp32" if name is None else name)
        if dtype is None:
            raise ValueError(
                f"Specified autocast mode ({name}) incorrect, expected one of "
                f"{', '.join(f'`{known}`' for known in _DTYPES)}; write --precision=bf16"
            )
        return cls(dtype)


class TorchAutocast(AbstractContextManager[Any, None]):
    """``torch.autocast`` for a dtype below float32, and a null context for float32.

    One object can be entered repeatedly, and inside itself.

    Parameters
    ----------
    *args, **kwargs
        Those of ``torch.autocast``; without a dtype it is a null context.

    Attributes
    ----------
    context : context manager
        The autocast that is entered, or a null context.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._enabled = kwargs.get("dtype", torch.float32) != torch.float32
        self._depth = 0
        self.context: AbstractContextManager[Any] = (
            torch.autocast(*args, **kwargs) if self._enabled else nullcontext()
        )

    def __enter__(self) -> Any:
        """Enter autocast; raise a RuntimeError that names dtype and device if torch refuses."""
        if not self._enabled:
            return None
        self._depth += 1
        if self._depth > 1:
            # Entering torch's object twice would lose the former state, and leave autocast on.
            return self.context
        try:
            return self.context.__enter__()
        except RuntimeError as error:
            self._depth = 0
            raise RuntimeError(
                f"autocast needs a device and a dtype that go together, got "
                f"dtype={getattr(self.context, 'fast_dtype', None)!r} on "
                f"device={getattr(self.context, 'device', None)!r}; try --precision=bf16 or fp32"
            ) from error

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Exit autocast."""
        if not self._enabled:
            return
        self._depth -= 1
        if self._depth == 0:
            self.context.__exit__(exc_type, exc_value, trace)


@overload
def fwd_default_precision(
    fwd: None = None, cast_inputs: torch.dtype | None = torch.float32
) -> Callable[[Callable[..., T]], Callable[..., T]]: ...


@overload
def fwd_default_precision(
    fwd: Callable[..., T], cast_inputs: torch.dtype | None = torch.float32
) -> Callable[..., T]: ...


def fwd_default_precision(
    fwd: Callable[..., Any] | None = None, cast_inputs: torch.dtype | None = torch.float32
) -> Callable[..., Any]:
    """Decorate a forward so that it computes in full precision under autocast, too.

    Under autocast, floating-point tensors among its arguments are cast and autocast is off
    inside; without autocast nothing changes.  The decorated function takes one more keyword,
    ``force_allow_autocast``: True runs it as if it were not decorated.

    Parameters
    ----------
    fwd : callable, optional
        The forward; without it, a decorator with this `cast_inputs` is returned.
    cast_inputs : torch.dtype, optional
        The dtype to cast to; with None nothing is cast and autocast stays as it is.

    Returns
    -------
    callable
    """
    if fwd is None:
        return functools.partial(fwd_default_precision, cast_inputs=cast_inputs)

    @functools.wraps(fwd)
    def wrapper(*args: Any, force_allow_autocast: bool = False, **kwargs: Any) -> Any:
        if force_allow_autocast or cast_inputs is None:
            return fwd(*args, **kwargs)
        used = _device_types((args, kwargs)) or {"cpu"}
        devices = [device for device in sorted(used) if torch.is_autocast_enabled(device)]
        if not devices:
            return fwd(*args, **kwargs)
        with ExitStack() as stack:
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            return fwd(*_cast(args, devices, cast_inputs), **_cast(kwargs, devices, cast_inputs))

    return wrapper


def make_grad_scaler(device: str | torch.device = "cpu", enabled: bool = False) -> GradScaler:
    """Return the gradient scaler for fp16, or one that does nothing.

    Parameters
    ----------
    device : str or torch.device
        Where the gradients are; its index does not matter.
    enabled : bool
        False: ``scale`` returns the loss itself, ``unscale_`` and ``update`` do nothing, and
        ``step`` is ``optimizer.step``.

    Returns
    -------
    torch.amp.GradScaler

    Raises
    ------
    ValueError
        For fp16 on the CPU, as SpeechBrain does.
    """
    device_type = torch.device(device).type
    if enabled and device_type == "cpu":
        raise ValueError(
            "fp16 with a gradient scaler needs an accelerator, got device='cpu'; "
            "use --precision=bf16 for mixed precision on the CPU"
        )
    return GradScaler(device_type, enabled=enabled)


GradScaler = torch.amp.GradScaler

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def _device_types(value: Any) -> set[str]:
    if isinstance(value, torch.Tensor):
        return {value.device.type}
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return set()
    return set().union(*(_device_types(item) for item in value))


def _cast(value: Any, devices: list[str], dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        # As in torch's custom_fwd: integers and float64 keep their dtype.
        castable = value.is_floating_point() and value.dtype != torch.float64
        return value.to(dtype) if castable and value.device.type in devices else value
    if isinstance(value, Mapping):
        return {key: _cast(item, devices, dtype) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_cast(item, devices, dtype) for item in value))
    if type(value) in (list, tuple):
        return type(value)(_cast(item, devices, dtype) for item in value)
    return value
