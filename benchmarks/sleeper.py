"""`seqproc worker` with an engine that sleeps: `python -m benchmarks.sleeper SECONDS CLAIMS worker [FLAGS]`.

All else is the real worker of a real process. CLAIMS is a file to which each claim is noted when it is committed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import worker.engine
from jobs import cli
from jobs.records import Claim, Job
from jobs.snapshot import SnapshotRow
from jobs.store.claims import Claims
from tests.rows import made_row
from worker.engine import OnStep, ShardRows


class SleepingEngine:
    """Takes `seconds` for a shard, whatever is in it, and makes rows without a model. Loads nothing."""

    device = "cpu"

    def __init__(self, seconds: float, *_: Any) -> None:
        self._seconds = seconds
        self.loaded: tuple[str, str | None] | None = None

    def prepare(self, job: Job) -> dict[str, str]:
        self.loaded = (job.model, job.adapter)
        return {"model": "asleep"}

    def run(self, job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> ShardRows:
        time.sleep(self._seconds)
        samples = range(job.num_sequences // job.num_prompts)
        made = ShardRows([made_row(prompt, sample) for prompt in rows for sample in samples])
        on_step(sum(len(row["response_ids"]) for row in made.rows), len(made.rows))
        return made

    def details(self) -> dict[str, Any]:
        return {"device": "none"}


def _note_claims(file: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    really = Claims.claim

    def claim(self: Claims, *args: Any, **options: Any) -> Claim | None:
        claimed = really(self, *args, **options)
        if claimed is not None:
            os.write(descriptor, f"{claimed.job.id} {claimed.shard.index} {time.monotonic():.6f}\n".encode())
        return claimed

    Claims.claim = claim  # type: ignore[method-assign]


def main() -> None:
    _, seconds, claims_file, *arguments = sys.argv
    worker.engine.CoreEngine = partial(SleepingEngine, float(seconds))  # type: ignore[misc,assignment]
    _note_claims(claims_file)
    sys.argv = ["seqproc", *arguments]
    cli.main()


if __name__ == "__main__":
    main()
