"""Workers die, race, are stopped and cancelled; the job's rows stay those of a run that nothing happened to."""

from __future__ import annotations

import signal
import time
from typing import Any

from tests.faults.conftest import SPEC, Lab, assert_complete


def test_kill_9_in_the_middle_then_a_new_worker(lab: Lab, undisturbed: list[dict[str, Any]]) -> None:
    job = lab.client.submit(**SPEC)
    first = lab.start_worker()
    lab.mid_shard(job)
    first.kill()
    first.wait()
    record = job.refresh()
    assert 0 < record.done_shards < record.num_shards, "killed in the middle, or the test shows nothing"
    assert lab.start_worker("--idle-exit").wait(120) == 0
    reaped = [a for a in lab.client.store.attempts(job.id) if a.outcome == "reaped"]
    assert len(reaped) == 1
    assert lab.client.store.shard(job.id, reaped[0].shard).attempt == 2
    assert_complete(lab, job, undisturbed)


def test_two_workers_racing(lab: Lab, undisturbed: list[dict[str, Any]]) -> None:
    job = lab.client.submit(**SPEC)
    workers = [lab.start_worker("--idle-exit") for _ in range(2)]
    assert [worker.wait(180) for worker in workers] == [0, 0]
    assert_complete(lab, job, undisturbed)


def test_sigterm_hands_the_shard_back_without_a_failure(lab: Lab, undisturbed: list[dict[str, Any]]) -> None:
    job = lab.client.submit(**SPEC)
    worker = lab.start_worker()
    lab.mid_shard(job)
    worker.terminate()
    assert worker.wait(30) == 0
    record = job.refresh()
    assert record.running_shards == 0
    assert record.pending_shards > 0
    assert all(shard.failures == 0 for shard in lab.client.store.shards(job.id))
    assert lab.client.store.workers() == []
    assert lab.start_worker("--idle-exit").wait(120) == 0
    assert_complete(lab, job, undisturbed)


def test_stopped_past_its_lease_then_continued(lab: Lab, undisturbed: list[dict[str, Any]]) -> None:
    """The zombie's process lives, so only the lease can tell; its late commit is refused and its file removed."""
    job = lab.client.submit(**SPEC)
    zombie = lab.start_worker()
    lab.mid_shard(job)
    lab.freeze(zombie)
    stuck = next(iter(lab.client.store.shards(job.id, states=["running"])))
    winner = lab.start_worker()
    lab.until(lambda: lab.client.store.shard(job.id, stuck.index).attempt > stuck.attempt)
    zombie.send_signal(signal.SIGCONT)
    lab.until(lambda: job.refresh().state.ended)
    for worker in (winner, zombie):
        worker.terminate()
        assert worker.wait(30) == 0
    assert_complete(lab, job, undisturbed)


def test_cancel_of_a_running_job_takes_effect_within_two_seconds(lab: Lab) -> None:
    job = lab.client.submit(**SPEC | {"num_prompts": 200, "shard_size": 20})
    lab.start_worker()
    lab.mid_shard(job)
    started = time.monotonic()
    job.cancel()
    lab.until(lambda: job.refresh().state.ended, seconds=2.5)  # 2 s and one decode step
    took = time.monotonic() - started
    record = job.record
    assert record.state == "cancelled", f"after {took:.2f} s"
    assert record.cancelled_shards > 0
    rows = list(job.rows())
    assert len(rows) == record.done_sequences == record.done_shards * 20 * SPEC["G"], "committed shards stay readable"


def test_retry_after_a_cancel_makes_only_what_is_missing(lab: Lab, undisturbed: list[dict[str, Any]]) -> None:
    job = lab.client.submit(**SPEC)
    worker = lab.start_worker()
    lab.mid_shard(job)
    job.cancel()
    lab.until(lambda: job.refresh().state.ended)
    worker.terminate()
    done = {shard.index: shard.file for shard in lab.client.store.shards(job.id, states=["done"])}
    job.retry()
    job.wait()
    assert {i: f for i, f in ((s.index, s.file) for s in lab.client.store.shards(job.id)) if i in done} == done
    assert_complete(lab, job, undisturbed)
