"""A worker process, real in all but its engine, which sleeps for each row and makes it from the job's seed alone.

Run as `python -m tests.faults.outages.puppet` with the arguments of `seqproc worker`; or of any other command, behind
`--clock FILE`: then the process's clocks, the wall's and SQLite's, are off by the seconds that stand in the file.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jobs.records import Job
from jobs.snapshot import SnapshotRow
from worker.engine import OnStep, ShardRows

STEP = "SEQPROC_TEST_STEP"  # seconds that a row takes
PAUSE = "SEQPROC_TEST_PAUSE"  # seconds that a worker leaves alone what failed
POISON = "poison"  # a prompt that fails
DEADLY = "deadly while there is "  # and a file: a prompt that kills its worker


class StandIn:
    """Rows that depend on the job's seed, the prompt and the sample: one taken for another would be seen."""

    device = "cpu"
    loaded = None

    def prepare(self, job: Job) -> dict[str, str]:
        return {"model": "stand-in"}

    def run(self, job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> ShardRows:
        made, seconds = ShardRows(), float(os.environ.get(STEP, 0))
        for prompt in rows:
            if prompt.prompt == POISON:
                made.fail(prompt, "the prompt cannot be taken")
                continue
            if _kills(prompt.prompt or ""):
                os.kill(os.getpid(), signal.SIGKILL)
            for sample in range(job.spec["G"]):
                time.sleep(seconds)
                made.rows.append(_row(job, prompt, sample))
                on_step(len(made.rows[-1]["response_ids"]), 1)
        return made

    def details(self) -> dict[str, Any]:
        return {"device": "none"}


def _kills(prompt: str) -> bool:
    return prompt.startswith(DEADLY) and Path(prompt.removeprefix(DEADLY)).exists()


def _row(job: Job, prompt: SnapshotRow, sample: int) -> dict[str, Any]:
    name = f"{job.spec['seed']} {prompt.prompt_index} {prompt.prompt} {sample}"
    digest = hashlib.sha256(name.encode()).digest()
    ids = list(digest[: 4 + digest[0] % 8])
    values = -np.array(ids, dtype=np.float32) / 7
    return {
        "prompt_index": prompt.prompt_index,
        "sample_index": sample,
        "custom_id": prompt.custom_id,
        "prompt": prompt.prompt,
        "response": digest.hex()[: len(ids)],
        "prompt_ids": [len(prompt.prompt or "")],
        "response_ids": ids,
        "logprobs": values,
        "entropies": -values,
        "token_ends": list(range(1, len(ids) + 1)),
        "finish_reason": "length",
    }


def _set_clocks(file: Path) -> None:
    from sqlalchemy import Engine, event

    true, epoch = time.time, 2440587.5  # in Julian days

    def wrong() -> float:
        return true() + float(file.read_text() or 0)

    time.time = wrong

    @event.listens_for(Engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.create_function("julianday", 1, lambda _now: wrong() / 86_400 + epoch)


def main(arguments: list[str]) -> None:
    import worker.engine
    from worker import drain

    worker.engine.CoreEngine = lambda *args: StandIn()  # type: ignore[assignment,misc]
    if PAUSE in os.environ:
        drain._Pause.__init__.__defaults__ = (float(os.environ[PAUSE]),)  # type: ignore[misc]
    if arguments[:1] == ["--clock"]:
        _set_clocks(Path(arguments[1]))
        arguments = arguments[2:]

    from jobs.cli import main as seqproc

    sys.argv = ["seqproc", *arguments]
    seqproc()


if __name__ == "__main__":
    main(sys.argv[1:])
