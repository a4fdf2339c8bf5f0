"""An engine without a model: rows are a function of their names, and a file holds it up for as long as a test wants."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.records import Job
from jobs.snapshot import SnapshotRow
from tests.rows import made_row
from worker.engine import OnStep, ShardRows


class HeldEngine:
    """Makes G rows for each prompt. While the file `hold` is there it makes none, and hears when it shall stop."""

    device = "none"
    loaded = None

    def __init__(self, hold: Path) -> None:
        self._hold = hold

    def prepare(self, job: Job) -> dict[str, str]:
        return {"model": "sha256:1"}

    def run(self, job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> ShardRows:
        made = ShardRows()
        for prompt in rows:
            on_step(1, 0)
            while self._hold.exists():
                on_step(0, 0)
                time.sleep(0.01)
            for sample in range(job.num_sequences // job.num_prompts):
                made.rows.append(made_row(prompt, sample))
                on_step(1, 1)
        return made

    def details(self) -> dict[str, Any]:
        return {"device": self.device}
