"""Whose fault it is: a shard's, a prompt's, the job's or the worker's own, and what then happens to each.

The engine is a stand-in that makes fixed rows and fails on demand; store, files and protocol are the real ones.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import Client, shard_files
from jobs.client import JobHandle
from jobs.errors import ResultsError, StoreError
from jobs.manifest import read_manifest
from jobs.paths import JobPaths
from jobs.processes import process_named
from jobs.records import Job
from jobs.settings import Settings
from jobs.snapshot import SnapshotRow
from jobs.store import Store
from worker import attempt as attempt_module
from worker.drain import Drain
from worker.engine import OnStep, ShardRows
from worker.faults import JobFault, WorkerFault
from worker.stop import Stop


class FixedEngine:
    """Makes G rows of two tokens for each prompt; `fault`, if set, is called first with (job, rows, on_step)."""

    device = "cpu"
    loaded = None

    def __init__(self) -> None:
        self.identity = {"model": "sha256:1"}
        self.fault: Callable[[Job, Sequence[SnapshotRow], OnStep], None] | None = None
        self.cannot_load: Exception | None = None
        self.while_loading: Callable[[], None] | None = None

    def prepare(self, job: Job) -> dict[str, str]:
        if self.while_loading is not None:
            self.while_loading()
        if self.cannot_load is not None:
            raise self.cannot_load
        return self.identity

    def run(self, job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> ShardRows:
        if self.fault is not None:
            self.fault(job, rows, on_step)
        made = ShardRows()
        for prompt in rows:
            if prompt.prompt == "poison":
                named = {"prompt_index": prompt.prompt_index, "sample_index": None, "custom_id": prompt.custom_id}
                made.errors.append(named | {"error": "the prompt cannot be taken"})
                continue
            for g in range(job.num_sequences // job.num_prompts):
                made.rows.append(_row(prompt, g))
                on_step(2, 1)
        return made

    def details(self) -> dict[str, Any]:
        return {"device": "none"}


def _row(prompt: SnapshotRow, sample: int) -> dict[str, Any]:
    values = np.array([-0.5, -0.25], dtype=np.float32)
    return {
        "prompt_index": prompt.prompt_index,
        "sample_index": sample,
        "custom_id": prompt.custom_id,
        "prompt": prompt.prompt,
        "response": "ab",
        "answer": None,
        "prompt_ids": [1, 2, 3],
        "response_ids": [4, 5],
        "logprobs": values,
        "entropies": values,
        "sampling_logprobs": values,
        "sampling_entropies": values,
        "token_ends": [1, 2],
        "finish_reason": "length",
        "stop_offset": None,
    }


class Bench:
    """A client, an engine and a drain in this process."""

    def __init__(self, home: Path) -> None:
        self.settings = Settings(home=home, heartbeat_seconds=0.02, poll_seconds=0.02, max_failures=3)
        self.client = Client(self.settings)
        self.engine = FixedEngine()
        self.stop = Stop()
        self.drain = self.another("w1")

    def another(self, worker_id: str) -> Drain:
        return Drain(self.client.store, self.settings, self.engine, worker_id, ["default"], self.stop)

    def submit(self, *prompts: str, **fields: Any) -> JobHandle:
        spec: dict[str, Any] = {"model": "tiny-arithmetic", "G": 2, "seed": 1, "shard_size": 2} | fields
        return self.client.submit(prompts=list(prompts) or [f"p{i}" for i in range(6)], **spec)

    def files(self, job: JobHandle) -> set[str]:
        folder = self.settings.results / "jobs" / job.id
        return {str(path.relative_to(folder)) for name in ("shards", "errors") for path in (folder / name).glob("*")}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "home")
    yield made
    made.client.close()


def test_a_job_is_drained_to_its_end(bench: Bench) -> None:
    job = bench.submit()
    assert bench.drain.until_idle() is None
    record = job.refresh()
    assert (record.state, record.done_shards, record.done_sequences, record.done_tokens) == ("succeeded", 3, 12, 24)
    assert len(list(job.rows())) == 12
    assert record.manifest_revision == record.revision
    assert record.identity == bench.engine.identity


def test_a_prompts_fault_fails_that_prompt_alone(bench: Bench) -> None:
    job = bench.submit("a", "poison", "b")
    bench.drain.until_idle()
    record = job.refresh()
    assert (record.state, record.prompt_errors, record.done_sequences) == ("succeeded", 1, 4)
    assert [(e["prompt_index"], e["error"]) for e in job.results.errors()] == [(1, "the prompt cannot be taken")]
    sequences, _ = job.to_batched()
    assert sequences.prompt_indices == [0, 2]


def test_a_shards_fault_counts_and_fails_it_at_the_limit_while_the_others_are_done(bench: Bench) -> None:
    def fault(job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> None:
        if rows[0].prompt_index == 2:
            raise ValueError("these rows cannot be done")

    bench.engine.fault = fault
    job = bench.submit()
    bench.drain.until_idle()
    record = job.refresh()
    assert (record.state, record.done_shards, record.failed_shards) == ("failed", 2, 1)
    failed = bench.client.store.shard(job.id, 1)
    assert (failed.failures, failed.attempt) == (3, 3)
    assert failed.error is not None
    assert "these rows cannot be done" in failed.error
    bench.engine.fault = None
    job.retry(failed_only=True)
    bench.drain.until_idle()
    assert job.refresh().state == "succeeded"
    assert bench.client.store.shard(job.id, 1).attempt == 4, "retry never lowers the attempt"


def test_the_jobs_own_fault_ends_it_with_its_sentence(bench: Bench) -> None:
    bench.engine.cannot_load = JobFault("there is no model org/none on the hub")
    job = bench.submit()
    assert bench.drain.until_idle() is None
    record = job.refresh()
    assert (record.state, record.error) == ("failed", "there is no model org/none on the hub")
    assert record.pending_shards == record.running_shards == 0


def test_the_workers_own_fault_hands_back_without_a_failure_and_serves_other_jobs(bench: Bench) -> None:
    bench.engine.cannot_load = WorkerFault("no network")
    job = bench.submit()
    why = bench.drain.until_idle()
    assert why is not None
    assert "no network" in why
    record = job.refresh()
    assert record.state == "running"
    assert record.notice is not None
    assert "no network" in record.notice
    assert all(shard.failures == 0 for shard in bench.client.store.shards(job.id))
    bench.engine.cannot_load = None
    other = bench.submit("x")
    bench.drain.once()
    assert other.refresh().state == "succeeded"
    assert job.refresh().done_shards == 0, "left alone for a while"
    bench.another("w2").until_idle()
    assert job.refresh().state == "succeeded"


def test_another_model_under_the_same_name_is_refused(bench: Bench) -> None:
    job = bench.submit()

    def stop_after_one(job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> None:
        if rows[0].prompt_index > 0:
            bench.engine.identity = {"model": "sha256:2"}

    bench.engine.fault = stop_after_one
    why = bench.drain.until_idle()
    assert why is not None
    assert "not what the job began with" in why
    assert job.refresh().identity == {"model": "sha256:1"}


def test_disk_full_is_the_workers_fault_and_leaves_no_half_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.submit()
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    why = bench.drain.until_idle()
    monkeypatch.setattr(os, "fsync", real)
    assert why is not None
    assert str(bench.settings.results) in why
    assert bench.files(job) == set()
    assert all(shard.failures == 0 for shard in bench.client.store.shards(job.id))


def test_a_fault_of_the_machine_pauses_everything(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [bench.submit() for _ in range(3)]
    made = []
    bench.engine.fault = lambda job, rows, on_step: made.append(job.id)

    def full(path: Path, rows: Any) -> None:
        raise ResultsError(f"{path.parent}: no space is left")

    monkeypatch.setattr(shard_files, "write_rows", full)
    why = bench.drain.until_idle()
    assert why is not None
    assert "no space is left" in why
    assert len(made) == 1, "nothing more is generated only to be thrown away"
    assert {job.refresh().running_shards for job in jobs} == {0}


def test_a_damaged_snapshot_fails_its_shards_and_no_others(bench: Bench) -> None:
    job = bench.submit()
    whole = bench.submit()
    segment = JobPaths(bench.settings.results, job.id).segment(0)
    segment.write_bytes(segment.read_bytes()[:100])
    assert bench.drain.until_idle() is None
    record = job.refresh()
    assert (record.state, record.failed_shards) == ("failed", 3)
    assert record.error is not None
    assert str(segment) in record.error
    assert whole.refresh().state == "succeeded"


def test_what_was_claimed_when_the_database_went_away_is_handed_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.submit()
    pin, away = Store.pin_identity, [True, True]

    def cut(self: Store, *args: Any) -> dict[str, str]:
        if away and away.pop():
            raise StoreError("the database does not answer")
        return pin(self, *args)

    monkeypatch.setattr(Store, "pin_identity", cut)
    assert bench.drain.until_idle() is None
    assert job.refresh().state == "succeeded"
    outcomes = [attempt.outcome for attempt in bench.client.store.attempts(job.id) if attempt.shard == 0]
    assert outcomes == ["handed back", "handed back", "done"]
    assert bench.client.store.shard(job.id, 0).failures == 0


def test_a_lost_claim_is_found_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim was committed and only its reply was lost: nobody would run that shard."""
    job = bench.submit("a")
    claim, calls = Store.claim, []

    def cut(self: Store, *args: Any, **options: Any) -> Any:
        calls.append(claim(self, *args, **options))
        if len(calls) == 1:
            raise StoreError("the connection was cut after the commit")
        return calls[-1]

    monkeypatch.setattr(Store, "claim", cut)
    assert bench.drain.until_idle() is None
    assert job.refresh().state == "succeeded"
    assert [a.outcome for a in bench.client.store.attempts(job.id)] == ["handed back", "done"]


def test_a_manifest_that_cannot_be_written_ends_no_worker(bench: Bench) -> None:
    job = bench.submit("a")
    JobPaths(bench.settings.results, job.id).manifest.mkdir()  # root may write anywhere but over a folder
    assert bench.drain.until_idle() is None
    other = bench.submit("b")
    assert bench.drain.until_idle() is None
    assert job.refresh().state == other.refresh().state == "succeeded"


def test_a_job_that_does_not_load_here_is_not_failed_once_another_worker_could_load_it(bench: Bench) -> None:
    job = bench.submit()

    def break_after_one(job_row: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> None:
        bench.engine.cannot_load = JobFault("the hub has no such model")

    bench.engine.fault = break_after_one
    why = bench.drain.until_idle()
    assert why is not None
    assert "another worker could load" in why
    assert job.refresh().state == "running"
    assert job.record.done_shards == 1


def test_while_a_model_loads_a_cancel_takes_effect_all_the_same(bench: Bench) -> None:
    job = bench.submit()

    def load() -> None:
        job.cancel()
        for _ in range(2_000):
            if job.refresh().state.ended:
                return
            threading.Event().wait(0.005)
        raise AssertionError("the cancel waited for the model")

    bench.engine.while_loading = load
    bench.drain.until_idle()
    assert job.refresh().state == "cancelled"
    assert bench.files(job) == set()


def test_a_cancel_that_ends_the_job_writes_its_manifest(bench: Bench) -> None:
    job = bench.submit()
    job.cancel()
    assert read_manifest(JobPaths(bench.settings.results, job.id).folder)["state"] == "cancelled"


def test_a_cancel_takes_back_what_a_dead_worker_held(bench: Bench) -> None:
    job = bench.submit()
    dead = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    bench.client.store.register_worker("dead", process_named(dead.pid), queues=["default"])
    assert bench.client.store.claim("dead", queues=["default"], model=None, age_limit=600) is not None
    dead.kill()
    dead.communicate()
    assert job.cancel().state == "cancelled"


def test_a_worker_whose_row_was_lost_registers_again(bench: Bench) -> None:
    bench.drain.once()
    bench.client.store.forget_worker("w1")
    bench.drain.once()
    assert [worker.id for worker in bench.client.store.workers()] == ["w1"]


def test_a_worker_looks_once_a_poll_and_again_only_after_it_has_become_idle(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever submits after the last look must find it idle in its row, or would not ring for it."""
    claim, looks = Store.claim, []

    def seen(self: Store, *args: Any, **options: Any) -> Any:
        idle = self.idle_workers("default") == 1
        found = claim(self, *args, **options)
        looks.append((idle, found is not None))
        return found

    monkeypatch.setattr(Store, "claim", seen)
    bench.drain.register()
    bench.drain.once()
    looks.clear()
    bench.drain.once()
    assert looks == [(True, False)]
    looks.clear()
    bench.submit("a")
    bench.drain.once()
    assert looks == [(True, True), (False, False), (True, False)]
    looks.clear()
    bench.engine.cannot_load = WorkerFault("no network")
    bench.submit("b")
    bench.drain.once()
    assert [found for _, found in looks] == [True, False, False]
    assert bench.client.store.idle_workers("default") == 0, "paused: nobody rings for it"
    bench.drain._shunned.clear()
    bench.engine.cannot_load = None
    looks.clear()
    bench.drain.once()
    assert looks == [(False, True), (False, False), (True, False)], "it goes on, and is idle before its last look"


def test_a_commit_that_comes_too_late_removes_its_own_files_only(bench: Bench) -> None:
    """While the first worker runs the shard, the shard is taken back and finished by a second one."""
    job = bench.submit("a", "poison")

    def overtaken(job_row: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> None:
        bench.engine.fault = None
        (shard,) = bench.client.store.shards(job_row.id, states=["running"])
        beat = bench.client.store.shard(job_row.id, shard.index).beat
        while not bench.client.store.reap(
            job_row.id, shard.index, shard.attempt, beat=beat, reason="for the test", limit=9
        ):
            beat = bench.client.store.shard(job_row.id, shard.index).beat
        bench.another("w2").once()

    bench.engine.fault = overtaken
    bench.drain.once()
    record = job.refresh()
    assert record.state == "succeeded"
    shard = bench.client.store.shard(job.id, 0)
    assert shard.attempt == 2
    assert bench.files(job) == {shard.file, shard.errors_file}


def test_a_commit_whose_reply_was_lost_is_known_as_done(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job = bench.submit("a")
    commit, calls = Store.commit, []

    def cut(self: Store, *args: Any) -> bool:
        calls.append(commit(self, *args))
        if len(calls) == 1:
            raise StoreError("the connection was cut after the commit")
        return calls[-1]

    monkeypatch.setattr(Store, "commit", cut)
    monkeypatch.setattr(attempt_module, "wait_exponential", lambda max: 0)
    bench.drain.until_idle()
    assert calls == [True, True]
    record = job.refresh()
    assert (record.state, record.done_shards, record.done_sequences) == ("succeeded", 1, 2)
    assert bench.files(job) == {bench.client.store.shard(job.id, 0).file}


def test_cancel_reaches_the_running_shard_through_its_heartbeat(bench: Bench) -> None:
    def cancel(job_row: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> None:
        job.cancel()
        for _ in range(100_000):
            on_step(0, 0)
            threading.Event().wait(0.005)
        raise AssertionError("never told to stop")

    bench.engine.fault = cancel
    job = bench.submit()
    bench.drain.until_idle()
    record = job.refresh()
    assert (record.state, record.cancelled_shards) == ("cancelled", 3)


def test_a_stop_hands_the_running_shard_back(bench: Bench) -> None:
    def stop(job_row: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> None:
        bench.stop.set()
        on_step(1, 0)

    bench.engine.fault = stop
    job = bench.submit()
    assert bench.drain.until_idle() is None
    record = job.refresh()
    assert (record.state, record.pending_shards, record.running_shards) == ("running", 3, 0)
    assert [a.outcome for a in bench.client.store.attempts(job.id)] == ["handed back"]
