"""wandb: a run in the project WANDB_PROJECT, by default `seqproc`. Its axis is `sequences`, not wandb's own step."""

from __future__ import annotations

import os

import wandb

from jobs.tracking.tracker import Figures, Run

_LONGEST_TAG = 64  # characters, by wandb's rule


class Wandb:
    """A run whose id is the job's. WANDB_MODE=offline keeps it in a folder, for `wandb sync`."""

    def __init__(self, run: Run) -> None:
        tags = {f"{key}={value}"[:_LONGEST_TAG] for key, value in run.labels.items()}
        # Of the machine that waits nothing is to be told: the work is done elsewhere.
        quiet = wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        project = os.environ.get("WANDB_PROJECT") or "seqproc"
        self._run = wandb.init(
            project=project,
            id=run.id,
            name=run.name,
            config=dict(run.config),
            tags=sorted(tags),
            resume="allow",
            settings=quiet,
        )
        self._run.define_metric("sequences")
        self._run.define_metric("*", step_metric="sequences")
        offline = self._run.settings.sync_dir
        self.where = self._run.url or f"{offline} (offline; send it with `wandb sync {offline}`)"

    def log(self, step: int, figures: Figures) -> None:
        self._run.log({**figures, "sequences": step})

    def close(self, state: str) -> None:
        self._run.summary["state"] = state
        self._run.finish(exit_code=1 if state in ("failed", "cancelled") else 0)


open_run = Wandb
