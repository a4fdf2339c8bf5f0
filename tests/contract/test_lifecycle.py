"""A person's side: cancel, retry, seal, delete; and a job's own error."""

from __future__ import annotations

import pytest

from jobs.errors import JobNotFound, WrongState
from jobs.states import JobState, ShardState
from jobs.store import Store
from tests.contract.helpers import LIMIT, check, claim, result, run_out, submit, try_claim


def states(store: Store, job_id: str) -> str:
    """A job's shards as a word: p, r, d, f, c."""
    return "".join(shard.state[0] for shard in store.shards(job_id))


def test_cancel_of_a_queued_job_is_immediate(store: Store) -> None:
    job = submit(store, 3)
    assert store.cancel(job.id).state is JobState.CANCELLED
    assert states(store, job.id) == "ccc"
    assert try_claim(store) is None
    assert store.cancel(job.id) == check(store, job.id)


def test_cancel_between_two_shards(store: Store) -> None:
    job = submit(store, 2)
    store.commit(claim(store), result())
    assert store.cancel(job.id).state is JobState.CANCELLED
    assert states(store, job.id) == "dc"
    check(store, job.id)


def test_cancel_of_a_running_job_waits_for_its_workers(store: Store) -> None:
    job = submit(store, 4)
    first, second = claim(store), claim(store)
    assert store.cancel(job.id).state is JobState.CANCELLING
    assert store.cancel(job.id).state is JobState.CANCELLING
    assert states(store, job.id) == "rrcc"
    assert try_claim(store) is None
    assert store.commit(first, result())  # it was done already: kept
    store.hand_back(second, "cancelled")
    ended = check(store, job.id)
    assert (ended.state, states(store, job.id)) == (JobState.CANCELLED, "dccc")
    assert [a.outcome for a in store.attempts(job.id)] == ["done", "cancelled"]


def test_a_cancel_that_came_too_late(store: Store) -> None:
    job = submit(store, 1)
    claimed = claim(store)
    store.cancel(job.id)
    assert store.commit(claimed, result())
    assert check(store, job.id).state is JobState.SUCCEEDED


def test_failures_and_the_reaper_while_cancelling(store: Store) -> None:
    job = submit(store, 2)
    first = claim(store)
    claim(store)
    store.cancel(job.id)
    assert store.fail(first, "boom", limit=1) is ShardState.CANCELLED
    assert store.reap(job.id, 1, 1, beat=0, reason="silent", limit=1)
    assert (check(store, job.id).state, states(store, job.id)) == (JobState.CANCELLED, "cc")


def test_what_has_ended_cannot_be_cancelled(store: Store) -> None:
    job = submit(store, 1)
    run_out(store)
    with pytest.raises(WrongState, match="already succeeded"):
        store.cancel(job.id)
    with pytest.raises(JobNotFound, match="nowhere"):
        store.cancel("nowhere")


def test_retry_queues_what_was_not_done(store: Store) -> None:
    job = submit(store, 3)
    store.commit(claim(store), result())
    store.fail(claim(store), "boom", limit=1)
    store.cancel(job.id)
    ended = check(store, job.id)
    assert (ended.state, states(store, job.id), ended.error) == (JobState.FAILED, "dfc", "shard 1: boom")
    retried = store.retry(job.id, failed_only=True)
    assert (retried.state, retried.error, retried.ended_at, states(store, job.id)) == (
        JobState.QUEUED,
        None,
        None,
        "dpc",
    )
    again = claim(store)
    assert (again.shard.index, again.shard.attempt, again.shard.failures) == (1, 2, 0)
    assert again.job.started_at == ended.started_at
    store.commit(again, result())
    assert check(store, job.id).state is JobState.CANCELLED
    with pytest.raises(WrongState, match="1 were cancelled"):
        store.retry(job.id, failed_only=True)
    store.retry(job.id)
    assert run_out(store) == 1
    assert check(store, job.id).state is JobState.SUCCEEDED


def test_retry_wants_an_ended_job_with_something_left(store: Store) -> None:
    job = submit(store, 1)
    with pytest.raises(WrongState, match="is queued"):
        store.retry(job.id)
    run_out(store)
    with pytest.raises(WrongState, match="no failed shard"):
        store.retry(job.id)


def test_a_jobs_own_error_fails_what_is_not_done(store: Store) -> None:
    job = submit(store, 4)
    store.commit(claim(store), result())
    first, second = claim(store), claim(store)
    store.beat(second, sequences=1, tokens=12)
    assert store.fail_job(first, "org/model does not exist")
    ended = check(store, job.id)
    assert (ended.state, ended.error, states(store, job.id)) == (JobState.FAILED, "org/model does not exist", "dfff")
    assert not store.commit(first, result())
    assert store.beat(second, sequences=1, tokens=12).lost
    assert [(a.outcome, a.tokens) for a in store.attempts(job.id)] == [("done", 10), ("failed", 0), ("failed", 12)]
    assert not store.fail_job(second, "again"), "fenced off"
    assert store.job(job.id) == ended
    assert store.retry(job.id).error is None
    assert [claim(store).shard.attempt for _ in range(3)] == [2, 2, 1]


def test_a_stream_ends_when_it_is_sealed(store: Store) -> None:
    job = submit(store, 1, sealed=False)
    run_out(store)
    assert check(store, job.id).state is JobState.RUNNING
    store.seal(job.id)
    store.seal(job.id)
    assert check(store, job.id).state is JobState.SUCCEEDED


def test_a_cancelled_stream_is_sealed(store: Store) -> None:
    job = submit(store, 1, sealed=False)
    claimed = claim(store)
    store.cancel(job.id)
    store.hand_back(claimed, "cancelled")
    assert check(store, job.id).state is JobState.CANCELLED
    empty = submit(store, 0, sealed=False)
    store.seal(empty.id)
    assert check(store, empty.id).state is JobState.CANCELLED


def test_deleting_goes_in_two_steps(store: Store) -> None:
    job = submit(store, 2, idempotency_key="k")
    with pytest.raises(WrongState, match="cancel it before"):
        store.tombstone(job.id)
    store.purge(job.id)
    store.cancel(job.id)
    store.purge(job.id)
    assert store.job_ids() == {job.id}  # only what is tombstoned is purged
    store.tombstone(job.id)
    assert [j.id for j in store.tombstoned()] == [job.id]
    assert (store.jobs(), store.jobs_with_old_manifest(), store.job_ids()) == ([], [], {job.id})
    for act in (store.job, store.cancel, store.retry, store.tombstone):
        with pytest.raises(JobNotFound):
            act(job.id)
    submit(store, 1, idempotency_key="k")  # the key is free again
    store.purge(job.id)
    assert store.tombstoned() == []
    assert job.id not in store.job_ids()
    assert store.shards(job.id) == []
    assert store.attempts(job.id) == []


def test_reap_only_what_stands_still(store: Store) -> None:
    job = submit(store, 1)
    claimed = claim(store, "w")
    store.beat(claimed, sequences=1, tokens=5)
    assert not store.reap(job.id, 0, 1, beat=0, reason="silent", limit=LIMIT)
    assert not store.reap(job.id, 0, 2, beat=1, reason="silent", limit=LIMIT)
    assert not store.reap("nowhere", 0, 1, beat=1, reason="silent", limit=LIMIT)
    assert store.reap(job.id, 0, 1, beat=1, reason="silent", limit=LIMIT)
    assert not store.reap(job.id, 0, 1, beat=1, reason="silent", limit=LIMIT)
    shard = store.shard(job.id, 0)
    assert (shard.state, shard.failures, shard.error) == (ShardState.PENDING, 1, "silent")
    [attempt] = store.attempts(job.id)
    assert (attempt.outcome, attempt.error, attempt.tokens) == ("reaped", "silent", 5)
    claim(store)
    assert store.reap(job.id, 0, 2, beat=0, reason="silent", limit=2)
    ended = check(store, job.id)
    assert (ended.state, ended.error) == (JobState.FAILED, "shard 0: silent")
