"""MLflow: a run in the experiment MLFLOW_EXPERIMENT_NAME, by default `seqproc`, of the server MLFLOW_TRACKING_URI.

MLflow makes its own run ids, so that the run of a job is found again by its tag `seqproc.job`.
"""

from __future__ import annotations

import os
import time

import mlflow
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from jobs.tracking.tracker import Figures, Run

_BATCH = 100  # params in one request, by MLflow's rule
_LONGEST_PARAM, _JOB = 6000, "seqproc.job"
_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


class Mlflow:
    """A run that no other is nested in: MLflow's notion of an active run is left alone."""

    def __init__(self, run: Run) -> None:
        self._client = MlflowClient()
        experiment = _experiment(self._client)
        found = self._client.search_runs([experiment], f"tags.`{_JOB}` = '{run.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            # A label may not pass for one of MLflow's own tags, nor for ours.
            tags = {f"label.{key}" if key.startswith("mlflow.") else key: v for key, v in run.labels.items()}
            made = self._client.create_run(experiment, run_name=run.name, tags={**tags, _JOB: run.id})
            self._id = made.info.run_id
            params = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in run.config.items()]
            for first in range(0, len(params), _BATCH):
                self._client.log_batch(self._id, params=params[first : first + _BATCH])
        self.where = f"run {self._id} at {mlflow.get_tracking_uri()}"

    def log(self, step: int, figures: Figures) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in figures.items()])

    def close(self, state: str) -> None:
        if state in _STATUS:  # else the job goes on, and so does its run
            self._client.set_terminated(self._id, _STATUS[state])


def _experiment(client: MlflowClient) -> str:
    """The experiment's id; it is made if need be."""
    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if given:
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "seqproc"
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


open_run = Mlflow
