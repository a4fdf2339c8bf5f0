"""Processes that meet: at a claim, at the last commit, at a cancel, at a SIGTERM, under gc."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event

from jobs.client import JobHandle
from jobs.errors import WrongState
from jobs.gc import collect
from tests.faults.conftest import TWELVE, Lab, assert_complete, on_both, scripted_rows


@on_both
def test_two_workers_racing_200_claims(lab: Lab) -> None:
    prompts = [f"p{i}" for i in range(200)]
    job = lab.submit(*prompts, shard_size=1)
    workers = [lab.puppet("claiming:meet:90") for _ in range(2)]  # both ask at the same moment
    assert [worker.wait(120) for worker in workers] == [0, 0]
    attempts = lab.client.store.attempts(job.id)
    assert [(a.shard, a.attempt, a.outcome) for a in attempts] == [(i, 1, "done") for i in range(200)]
    shares = [sum(a.worker_id == worker for a in attempts) for worker in {a.worker_id for a in attempts}]
    assert len(shares) == 2
    assert min(shares) >= 90
    assert_complete(lab, job, scripted_rows(prompts))


@on_both
def test_two_workers_finishing_the_last_two_shards_at_once(lab: Lab) -> None:
    jobs = [lab.submit("p0", "p1", "p2", "p3") for _ in range(10)]
    workers = [lab.puppet("written:meet:10") for _ in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    for job in jobs:
        assert {a.outcome for a in lab.client.store.attempts(job.id)} == {"done"}
        assert len(lab.client.store.job_workers(job.id)) == 2, "each had one of the two"
        assert job.refresh().revision == 5, "two claims, one identity and two commits, one of which ended it"
        assert_complete(lab, job, TWELVE[:8])


@on_both
def test_cancel_against_claim_and_commit(lab: Lab) -> None:
    """Cancelled before a claim, after it, before a commit and after it, as it comes; then made whole by retry."""
    jobs = [lab.submit() for _ in range(8)]
    workers = [lab.puppet(command=["worker"]) for _ in range(2)]
    for number, job in enumerate(jobs):
        lab.until(lambda job=job, number=number: job.refresh().done_shards >= number % 4)
        with suppress(WrongState):  # it was faster
            job.cancel()
    lab.until(lambda: all(job.refresh().state.ended for job in jobs))
    assert {job.record.state for job in jobs} <= {"cancelled", "succeeded"}
    assert "cancelled" in {job.record.state for job in jobs}
    for job in jobs:
        done = lab.client.store.shards(job.id, states=["done"])
        made = {p for shard in done for p in range(shard.first_prompt, shard.first_prompt + 2)}
        assert_complete(lab, job, [row for row in TWELVE if row["prompt_index"] in made], state=job.record.state)
        if job.record.state == "cancelled":
            job.retry()
    lab.until(lambda: all(job.refresh().state.ended for job in jobs))
    for worker in workers:
        worker.terminate()
        assert worker.wait(30) == 0
    for job in jobs:
        assert set(lab.outcomes(job)) <= {"done", "handed back", "cancelled"}
        assert_complete(lab, job, TWELVE)


@on_both
def test_a_commit_after_the_cancel_is_kept(lab: Lab) -> None:
    job = lab.submit()
    worker = lab.puppet("written:wait:2")
    lab.until(lambda: worker.waits)
    assert job.cancel().state == "cancelling"
    worker.go_on()
    assert worker.wait(120) == 0
    assert (job.refresh().done_shards, job.record.cancelled_shards) == (2, 4)
    assert_complete(lab, job, TWELVE[:8], state="cancelled")
    job.retry()
    assert lab.puppet().wait(120) == 0
    assert_complete(lab, job, TWELVE)


def test_sigterm_under_load(lab: Lab) -> None:
    """Workers come and go; each hands back what it holds, and nothing is held against a shard."""
    prompts = [f"sleep 0.01 {i}" for i in range(60)]
    jobs = [lab.submit(*prompts) for _ in range(3)]
    done = 0
    while not all(job.refresh().state.ended for job in jobs):
        workers = [lab.puppet(command=["worker"]) for _ in range(2)]
        lab.until(lambda: len(lab.client.store.workers()) == 2)
        lab.until(lambda before=done: _done(jobs) > before + 20 or all(job.state.ended for job in jobs))
        done = _done(jobs)
        for worker in workers:
            worker.terminate()
        assert [worker.wait(30) for worker in workers] == [0, 0]
        assert lab.client.store.workers() == []
        assert all(job.refresh().running_shards == 0 for job in jobs)
    assert len(lab.workers) > 4, "stopped in the middle, or the test shows nothing"
    for job in jobs:
        assert set(lab.outcomes(job)) <= {"done", "handed back"}
        assert all(shard.failures == 0 for shard in lab.client.store.shards(job.id))
        assert_complete(lab, job, scripted_rows(prompts))


def _done(jobs: list[JobHandle]) -> int:
    return sum(job.refresh().done_shards for job in jobs)


@on_both
def test_gc_running_throughout(lab: Lab) -> None:
    """Two of them, beside two workers, one of which dies in mid-write, and while jobs are submitted and deleted."""
    prompts = [f"p{i}" for i in range(30)]
    jobs = [lab.submit(*prompts)]
    victim, other = lab.puppet("writing:die:5"), lab.puppet(command=["worker"])
    ended = Event()

    def collect_all() -> int:
        rounds = 0
        while not ended.is_set():
            collect(lab.client.store, lab.settings)
            rounds += 1
        return rounds

    with ThreadPoolExecutor(2) as pool:
        collectors = [pool.submit(collect_all) for _ in range(2)]
        try:
            for _ in range(8):
                deleted = lab.submit(queue="nobodys")
                deleted.cancel()
                lab.client.store.tombstone(deleted.id)
                jobs += [lab.submit(*prompts)] if len(jobs) < 3 else []
            lab.until(lambda: victim.poll() is not None and all(job.refresh().state.ended for job in jobs))
        finally:
            ended.set()
        assert all(collector.result() > 3 for collector in collectors)
    other.terminate()
    assert other.wait(30) == 0
    assert victim.wait() == -signal.SIGKILL
    assert {path.name for path in (lab.settings.results / "jobs").iterdir()} == {job.id for job in jobs}
    for job in jobs:
        assert_complete(lab, job, scripted_rows(prompts))
