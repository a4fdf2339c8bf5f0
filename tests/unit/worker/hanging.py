"""`python -m tests.unit.worker.hanging HOW` is `seqproc worker` with an engine that hangs. For test_watchdog.

HOW: `python` and `gil` hang in the first shard, the second of them in a native call that keeps the GIL; `load` hangs
while it loads, for which it has longer.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Sequence

import pandas as pd  # noqa: F401  loaded before anything is timed: on a busy machine that takes seconds
import pyarrow.parquet as pq  # noqa: F401

from jobs.records import Job
from jobs.settings import Settings
from jobs.snapshot import SnapshotRow
from tests.unit.worker.test_drain import FixedEngine
from worker import engine, watchdog
from worker.command import serve
from worker.engine import OnStep, ShardRows

HOW = sys.argv[1]


class HangingEngine(FixedEngine):
    def prepare(self, job: Job) -> dict[str, str]:
        if HOW == "load":
            hang_here()
        return super().prepare(job)

    def run(self, job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> ShardRows:
        hang_here()
        raise AssertionError("it came back")


def hang_here() -> None:
    if HOW == "gil":
        ctypes.PyDLL(None).sleep(3600)
    while True:
        time.sleep(0.01)


if __name__ == "__main__":
    engine.CoreEngine = lambda *_: HangingEngine()  # type: ignore[assignment,misc]
    watchdog.LOADING_SECONDS = 3.0
    serve(Settings.load(), ["default"], idle_exit=True, quiet=True)
