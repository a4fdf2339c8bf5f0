"""What a worker's row tells of it: alive and how full whether it waits or works, and paused only while it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.errors import StoreError
from jobs.records import Job, Worker
from jobs.snapshot import SnapshotRow
from jobs.store import Store
from tests.unit.worker.test_drain import Bench
from worker import attempt as attempt_module
from worker.engine import OnStep
from worker.faults import WorkerFault


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "home")
    yield made
    made.client.close()


def row(bench: Bench) -> Worker:
    (worker,) = bench.client.store.workers()
    return worker


def test_an_idle_worker_is_seen_and_tells_its_memory(bench: Bench) -> None:
    bench.drain.register()
    bench.drain.once()
    first = row(bench)
    bench.drain.once()
    assert row(bench).beat > first.beat and row(bench).seen_at >= first.seen_at
    assert first.memory_total == psutil.virtual_memory().total
    assert first.memory_used is not None and 0 < first.memory_used < first.memory_total


def test_a_working_one_tells_it_with_each_heartbeat(bench: Bench) -> None:
    seen: list[Worker] = []

    def work(job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> None:
        bench.drain.vitals.memory = {"memory_used": 3, "memory_total": 9}
        while not seen or seen[-1].memory_total != 9:
            seen.append(row(bench))

    bench.engine.fault = work
    job = bench.submit("a")
    bench.drain.until_idle()
    assert (seen[-1].job_id, seen[-1].shard, seen[-1].memory_used) == (job.id, 0, 3)


def test_a_pause_is_shown_while_it_lasts(bench: Bench) -> None:
    bench.engine.cannot_load = WorkerFault("no network")
    job = bench.submit()
    bench.drain.once()
    assert row(bench).paused == f"job {job.id}: no network"
    bench.drain.once()
    assert row(bench).paused == f"job {job.id}: no network", "still"
    job.cancel()
    bench.drain._shunned[job.id].until = 0.0
    bench.drain.once()
    assert row(bench).paused is None


def test_waiting_for_the_database_with_a_finished_shard_is_no_standstill(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, still, vitals = Store.commit, [], bench.drain.vitals

    def away(self: Store, *args: Any) -> bool:
        still.append(vitals.still)
        vitals._moved_at -= 1000  # as if it had taken so long to find out
        if len(still) < 3:
            raise StoreError("the database does not answer")
        return commit(self, *args)

    monkeypatch.setattr(Store, "commit", away)
    monkeypatch.setattr(attempt_module, "wait_exponential", lambda max: 0)
    bench.submit("a")
    assert bench.drain.until_idle() is None
    assert len(still) == 3 and max(still) < 500
