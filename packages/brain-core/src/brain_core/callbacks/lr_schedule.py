"""Learning-rate schedules, per optimizer step or per epoch."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from brain_core.callbacks.base import Callback
from brain_core.callbacks.valid_metric import ValidMetric
from brain_core.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    import torch

    from brain_core.brain import Brain

__all__ = ["LRSchedule"]

Per = Literal["step", "epoch"]


class LRSchedule(Callback):
    """Sets the learning rates of optimizers, per optimizer step or per epoch.

    A schedule of one's own is a function of the steps done and of all steps of the `fit`, and
    returns a factor of the first learning rate::

        LRSchedule(lambda step, total: min(1, step / 100) * (1 - step / total))

    A scheduler of torch is made by a function of the optimizer, once `fit` has one::

        LRSchedule(lambda optimizer: StepLR(optimizer, step_size=10), per="epoch")

    Steps are accumulation windows, skipped ones included, so that a schedule ends where training
    does. A learning rate that is set per epoch holds from the epoch's first batch on.

    Parameters
    ----------
    schedule : callable or LRScheduler
        A function of two arguments, of steps (or epochs) done and their total; a function of one
        argument that returns an ``LRScheduler`` for an optimizer; or an ``LRScheduler``.
    per : {"step", "epoch"}
        When the rates change.
    optimizers : collection of str, optional
        The names in ``brain.optimizers_dict`` of those to schedule; by default all.
    key : str
        For ``ReduceLROnPlateau``, per epoch: the metric of the validation in
        ``brain.stage_stats``.

    Attributes
    ----------
    done : int
        Steps or epochs of this `fit` so far.

    Raises
    ------
    ValueError
        For an argument that cannot work. When `fit` begins, if there is no such optimizer, or if a
        function needs a total that is not known.
    """

    def __init__(
        self,
        schedule: Callable[..., Any] | LRScheduler,
        per: Per = "step",
        *,
        optimizers: Collection[str] | None = None,
        key: str = "loss",
    ) -> None:
        if per not in get_args(Per):
            raise ValueError(f"LRSchedule needs per='step' or per='epoch', got {per!r}.")
        self.schedule = schedule
        self.per = per
        self._names = optimizers
        self._is_function = _is_function_of_steps(schedule)
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._schedulers: dict[str, LRScheduler] = {}
        self._loaded: Mapping[str, Any] = {}
        self._total: int | None = None
        self._value: float | None = None  # of the last validation
        self._is_inside = False  # whether an epoch was begun
        self._metric = ValidMetric("LRSchedule", key, self._keep)
        self.done = 0

    def on_fit_start(self, brain: Brain, *, is_resumed: bool) -> None:
        """Take the optimizers, and set the rates that hold now."""
        self._optimizers = _select(brain, self._names)
        self._total = brain.total_optimizer_steps if self.per == "step" else brain.total_epochs
        self._metric.begin()
        if not is_resumed:
            self._begin()
        if self._is_function:
            self._apply()
        elif isinstance(self.schedule, LRScheduler):
            self._schedulers = {self._name_of(self.schedule.optimizer): self.schedule}
            self._restore(is_resumed=is_resumed)
        else:
            self._make_schedulers(is_resumed=is_resumed)

    def on_stage_start(self, brain: Brain, stage: Stage, epoch: int | None) -> None:
        """Set the rates of an epoch."""
        del epoch
        if self._needs_metric:
            self._metric.stage_starts(stage, brain.stage_stats)
        if self.per != "epoch" or stage is not Stage.TRAIN:
            return
        if self._is_inside:
            self._advance()
        self._is_inside = True

    def on_optimizer_step(self, brain: Brain, *, is_taken: bool) -> None:
        """Set the rates of the next step."""
        del brain, is_taken
        if self.per == "step":
            self._advance()

    def on_stage_end(
        self, brain: Brain, stage: Stage, stats: Mapping[str, Any], epoch: int | None
    ) -> None:
        """Note the metric of a validation, for ``ReduceLROnPlateau``."""
        del brain, epoch
        if self._needs_metric and stage is Stage.VALID:
            self._metric.stage_ends(stats)

    def state_dict(self) -> dict[str, Any]:
        """Return the count, and the states of torch's schedulers."""
        self._metric.save()
        return {
            "done": self.done,
            "is_inside": self._is_inside,
            "metric": self._value,
            "schedulers": {name: one.state_dict() for name, one in self._schedulers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that was saved, once `fit` begins."""
        self._loaded = state
        self.done, self._is_inside = state["done"], state["is_inside"]
        self._value = state["metric"]

    def _begin(self) -> None:
        self.done = 0
        self._is_inside = False
        self._value = None

    def _keep(self, value: float) -> None:
        self._value = value

    def _advance(self) -> None:
        self.done += 1
        if self._is_function:
            self._apply()
        for scheduler in self._schedulers.values():
            if isinstance(scheduler, ReduceLROnPlateau):
                assert self._value is not None, "an epoch without a validation is an error before"
                scheduler.step(self._value)
            else:
                scheduler.step()

    def _apply(self) -> None:
        """Set the rates to the schedule's factor of the first ones."""
        try:
            factor = float(self.schedule(self.done, self._total))  # type: ignore[operator]  # a function
        except TypeError as error:
            if self._total is not None:
                raise
            raise ValueError(
                f"The schedule needs the total number of {self.per}s of the fit, which is not "
                "known: the training set or the epochs have no length. Set optimizer_step_limit, "
                "give a loader that has one, or write a schedule of the first argument alone."
            ) from error
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                _set_rate(group, group.setdefault("initial_lr", group["lr"]) * factor)

    def _make_schedulers(self, *, is_resumed: bool) -> None:
        """Make torch's schedulers; a resumed run keeps the rates that the optimizers have."""
        self._schedulers = {}
        for name, optimizer in self._optimizers.items():
            if not is_resumed:
                for group in optimizer.param_groups:  # of a fit before
                    _set_rate(group, group.get("initial_lr", group["lr"]))
            options = [_options(group) for group in optimizer.param_groups]
            scheduler = self.schedule(optimizer)  # type: ignore[operator]  # a function
            if not isinstance(scheduler, LRScheduler):
                raise TypeError(
                    f"LRSchedule needs a function of one argument to return an LRScheduler, got "
                    f"{scheduler!r}."
                )
            self._schedulers[name] = scheduler
            if is_resumed and name in self._loaded.get("schedulers", ()):
                for group, kept in zip(optimizer.param_groups, options, strict=True):
                    group.update(kept)
        self._restore(is_resumed=is_resumed)

    def _restore(self, *, is_resumed: bool) -> None:
        self._check()
        for name, state in self._loaded.get("schedulers", {}).items() if is_resumed else ():
            if name in self._schedulers:
                self._schedulers[name].load_state_dict(dict(state))
                # Steps before the restart were steps: torch would warn that there were none.
                self._optimizers[name]._opt_called = True  # type: ignore[attr-defined]  # noqa: SLF001  # torch's
        self._loaded = {}

    @property
    def _needs_metric(self) -> bool:
        return any(isinstance(one, ReduceLROnPlateau) for one in self._schedulers.values())

    def _check(self) -> None:
        if self._needs_metric and self.per == "step":
            raise ValueError(
                "ReduceLROnPlateau needs the metric of a validation, got per='step'. Give "
                "per='epoch'."
            )

    def _name_of(self, optimizer: torch.optim.Optimizer) -> str:
        for name, one in self._optimizers.items():
            if one is optimizer:
                return name
        raise ValueError(
            "LRSchedule needs a scheduler of an optimizer of the Brain, got one of another. Give a "
            "function of the optimizer: LRSchedule(lambda optimizer: StepLR(optimizer, 10))."
        )


def _is_function_of_steps(schedule: Any) -> bool:
    """Return whether a schedule is a function of steps and total."""
    if isinstance(schedule, LRScheduler):
        return False
    if callable(schedule) and not isinstance(schedule, type):
        required = [
            parameter
            for parameter in inspect.signature(schedule).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        if len(required) in (1, 2):
            return len(required) == 2  # noqa: PLR2004  # steps and total
    raise ValueError(
        "LRSchedule needs a function of (step, total), a function of an optimizer that returns an "
        f"LRScheduler, or an LRScheduler, got {schedule!r}. For a class of torch, write "
        "LRSchedule(lambda optimizer: StepLR(optimizer, step_size=10))."
    )


def _select(brain: Brain, names: Collection[str] | None) -> dict[str, torch.optim.Optimizer]:
    found = dict(brain.optimizers_dict or {})
    single = getattr(brain, "optimizer", None)
    if not found and single is not None:
        found = {"optimizer": single}
    missing = [name for name in names or () if name not in found]
    if missing or not found:
        raise ValueError(
            f"LRSchedule needs {', '.join(missing) or 'an optimizer'} in optimizers_dict, got "
            f"{', '.join(found) or 'no optimizer'}. Give the Brain an opt_class, or fill "
            "self.optimizers_dict in init_optimizers."
        )
    return {name: one for name, one in found.items() if names is None or name in names}


def _set_rate(group: dict[str, Any], rate: Any) -> None:
    """Set a group's rate; one that is a tensor, for compiled optimizers, in place."""
    if hasattr(group["lr"], "fill_"):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group's options; a copy of a rate that is a tensor."""
    return {
        key: value.clone() if hasattr(value, "clone") else value
        for key, value in group.items()
        if key != "params"
    }
