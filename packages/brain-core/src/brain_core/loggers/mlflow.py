"""A training logger for MLflow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from brain_core.loggers.base import MainProcessLogger, Stats, plain_number
from brain_dist import if_main_process

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MLflowLogger"]


class MLflowLogger(MainProcessLogger):
    """Log figures to MLflow; needs ``brain-core[mlflow]``.

    The run is made when figures are logged, a checkpoint is saved or `run_id` is read for the first
    time. Checkpoints hold its id, and a run that is restarted goes on in it; points that are there
    already are not written again. The step of a figure is its epoch, its name ``valid/loss``.

    Parameters
    ----------
    experiment : str
        The experiment, which is created if there is none of the name.
    tracking_uri : str, optional
        Where MLflow stores runs, such as ``sqlite:///mlruns.db``; by default MLflow's own.
    run_name : str, optional
        The name of the run.
    tags : mapping of str to str, optional
        Tags of the run.

    Raises
    ------
    ImportError
        If MLflow is not installed.
    """

    def __init__(
        self,
        experiment: str = "Default",
        tracking_uri: str | None = None,
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.experiment = experiment
        self.run_name = run_name
        self.tags = dict(tags or {})
        self._id: str | None = None
        self._there: dict[str, dict[int, float]] = {}  # what the run had before a restart
        self._client = _make_client(tracking_uri) if if_main_process() else None

    @property
    def run_id(self) -> str | None:
        """The id of the run; None on other processes than the main one."""
        if self._id is None and self._client is not None:
            experiment = self._client.get_experiment_by_name(self.experiment)
            number = (
                self._client.create_experiment(self.experiment)
                if experiment is None
                else experiment.experiment_id
            )
            run = self._client.create_run(number, tags=self.tags, run_name=self.run_name)
            self._id = run.info.run_id
        return self._id

    def state_dict(self) -> dict[str, Any]:
        """Return the id of the run."""
        return {"id": self.run_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the run that was saved."""
        self._id, self._there = state["id"], {}
        if self._client is None or self._id is None:
            return
        self._client.update_run(self._id, status="RUNNING")
        for key in self._client.get_run(self._id).data.metrics:
            history = self._client.get_metric_history(self._id, key)
            self._there[key] = {point.step: point.value for point in history}

    def _write(self, meta: Stats, sets: Mapping[str, Stats]) -> dict[str, Any]:
        step = int(plain_number(meta.get("epoch", 0)))
        figures = {name: value for name, value in meta.items() if name != "epoch"}
        for name, stats in sets.items():
            figures |= {f"{name}/{stat}": value for stat, value in stats.items()}
        for name, value in figures.items():
            values = value if isinstance(value, list) else [value]
            for number, one in enumerate(values):
                at = step if not isinstance(value, list) else (step - 1) * len(values) + number + 1
                self._log(name, plain_number(one), at)
        return dict(meta)

    def _log(self, name: str, value: Any, step: int) -> None:
        """Write a point, unless it is there; what is no number becomes a tag."""
        assert self._client is not None, "main_process_only lets only the owner of the run in"
        if not isinstance(value, (int, float)):
            self._client.set_tag(self.run_id, name, value)
            return
        there = self._there.get(name, {}).get(step)
        if there is None or not (there == value or (math.isnan(there) and math.isnan(value))):
            self._client.log_metric(self.run_id, name, value, step=step)


def _make_client(tracking_uri: str | None) -> Any:
    try:
        from mlflow.tracking import MlflowClient  # an extra
    except ImportError as error:
        raise ImportError("MLflowLogger needs MLflow: pip install 'brain-core[mlflow]'") from error
    return MlflowClient(tracking_uri)
