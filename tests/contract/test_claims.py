"""A worker's side: which shard is claimed, and what may still be written once the fence is gone."""

from __future__ import annotations

import pytest
from sqlalchemy.exc import OperationalError

from jobs.errors import StoreError
from jobs.states import JobState, ShardState
from jobs.store import Store
from tests.contract.helpers import LIMIT, age, check, claim, result, run_out, submit, try_claim


def test_a_claim_takes_the_lowest_shard_and_starts_the_job(store: Store) -> None:
    job = submit(store, 3)
    first = claim(store, "w1")
    assert (first.job.id, first.shard.index, first.shard.attempt, first.worker_id) == (job.id, 0, 1, "w1")
    assert (first.shard.state, first.shard.worker_id) == (ShardState.RUNNING, "w1")
    assert (first.job.state, first.job.pending_shards, first.job.running_shards) == (JobState.RUNNING, 2, 1)
    assert first.job.started_at is not None
    assert first.job.started_at >= job.created_at
    assert claim(store).shard.index == 1
    [attempt, _] = store.attempts(job.id)
    assert (attempt.shard, attempt.attempt, attempt.worker_id, attempt.outcome) == (0, 1, "w1", None)
    assert store.shard(job.id, 0) == first.shard


def test_nothing_to_claim(store: Store) -> None:
    assert try_claim(store) is None
    job = submit(store, queue="gpu")
    assert try_claim(store) is None
    assert try_claim(store, queues=["default", "gpu"], exclude=[job.id]) is None
    assert claim(store, queues=["default", "gpu"]).job.id == job.id


def test_what_exists(store: Store) -> None:
    queues = ["default"]
    assert not store.pending_exists(queues)
    job = submit(store, 1)
    assert store.pending_exists(queues)
    assert not store.pending_exists(queues, exclude=[job.id])
    assert not store.pending_exists(["gpu"])
    claimed = claim(store)
    assert not store.pending_exists(queues)
    assert store.unfinished_exists(queues)
    store.commit(claimed, result())
    assert not store.unfinished_exists(queues)


def test_order_of_jobs(store: Store) -> None:
    """Aged first, then priority, then the owner's share, then the loaded model, then age."""
    old = submit(store, 9)
    new = submit(store, 9)
    assert claim(store).job.id == old.id  # age, and now ada has a shard running
    bobs = submit(store, 9, owner="bob", model="org/other")
    assert claim(store, model=("org/model", None)).job.id == bobs.id  # the share goes before the model
    cyds = submit(store, 9, owner="cyd", model="org/other", adapter="org/adapter")
    plain = submit(store, 9, owner="dee", model="org/other")
    assert claim(store, model=("org/other", None)).job.id == plain.id  # the model, adapter and all, before age
    assert claim(store, model=("org/other", None)).job.id == cyds.id
    urgent = submit(store, 9, priority=5)
    assert claim(store).job.id == urgent.id  # priority before share
    age(store, new.id, 700)
    assert claim(store).job.id == new.id  # not served for too long
    assert claim(store).job.id == urgent.id  # served now


def test_a_retried_job_is_not_aged(store: Store) -> None:
    job = submit(store)
    store.cancel(job.id)
    age(store, job.id, 10_000)
    urgent = submit(store, priority=1)
    store.retry(job.id)
    assert claim(store).job.id == urgent.id


def test_commit_ends_the_job_with_its_last_shard(store: Store) -> None:
    job = submit(store, 2)
    mine = result(tokens=7, errors=1)
    assert store.commit(claim(store), mine)
    assert check(store, job.id).state is JobState.RUNNING
    assert store.commit(claim(store), result(tokens=5))
    ended = check(store, job.id)
    assert (ended.state, ended.done_shards, ended.done_sequences) == (JobState.SUCCEEDED, 2, 10)
    assert (ended.done_tokens, ended.prompt_errors) == (12, 1)
    shard = store.shard(job.id, 0)
    assert (shard.file, shard.errors_file, shard.sha256, shard.bytes) == (mine.file, mine.errors_file, mine.sha256, 100)
    assert (shard.sequences, shard.tokens, shard.prompt_errors, shard.running_tokens) == (4, 7, 1, 0)
    [attempt, _] = store.attempts(job.id)
    assert (attempt.outcome, attempt.tokens, attempt.details) == ("done", 7, {"gen_batch_size": 32})
    assert store.names_file(job.id, 0, mine.file)
    assert store.names_file(job.id, 0, mine.errors_file or "")
    assert not store.names_file(job.id, 1, mine.file)


def test_commit_again_is_true_and_changes_nothing(store: Store) -> None:
    job = submit(store, 2)
    claimed, mine = claim(store), result()
    assert store.commit(claimed, mine)
    before = check(store, job.id)
    assert store.commit(claimed, mine)
    assert store.job(job.id) == before
    assert not store.commit(claimed, result())  # another file of the same attempt


def test_a_commit_whose_reply_was_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submit(store, 1)
    claimed, mine = claim(store), result()
    dialect = store.db.engine.dialect
    really = dialect.do_commit

    def commit_and_lose(connection: object) -> None:
        really(connection)  # type: ignore[arg-type]
        raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    with monkeypatch.context() as patch:
        patch.setattr(dialect, "do_commit", commit_and_lose)
        with pytest.raises(StoreError, match="does not answer"):
            store.commit(claimed, mine)
    assert store.commit(claimed, mine)
    assert check(store, job.id).state is JobState.SUCCEEDED


def test_a_commit_that_never_happened(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submit(store, 1)
    claimed = claim(store)

    def lose(connection: object) -> None:
        raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))

    with monkeypatch.context() as patch:
        patch.setattr(store.db.engine.dialect, "do_commit", lose)
        with pytest.raises(StoreError):
            store.commit(claimed, result())
    assert check(store, job.id).running_shards == 1
    assert store.commit(claimed, result())


def test_failures_count_to_the_limit(store: Store) -> None:
    job = submit(store, 2)
    for attempt in range(1, LIMIT):
        assert store.fail(claim(store), f"boom {attempt}", limit=LIMIT) is ShardState.PENDING
        shard = store.shard(job.id, 0)
        assert (shard.attempt, shard.failures, shard.error) == (attempt, attempt, f"boom {attempt}")
        assert shard.worker_id is None
    assert store.fail(claim(store), "boom 3", limit=LIMIT) is ShardState.FAILED
    assert check(store, job.id).state is JobState.RUNNING
    assert run_out(store) == 1
    ended = check(store, job.id)
    assert (ended.state, ended.error) == (JobState.FAILED, "shard 0: boom 3")
    assert [a.outcome for a in store.attempts(job.id)] == ["failed"] * 3 + ["done"]


def test_the_jobs_error_counts_its_failed_shards(store: Store) -> None:
    job = submit(store, 3)
    for _ in range(3):
        store.fail(claim(store), "boom", limit=1)
    assert store.job(job.id).error == "shard 0: boom (and 2 more failed shards)"


def test_handing_back_counts_no_failure(store: Store) -> None:
    job = submit(store, 1)
    for attempt in range(1, 2 * LIMIT):
        claimed = claim(store)
        assert claimed.shard.attempt == attempt
        store.beat(claimed, sequences=1, tokens=9)
        store.hand_back(claimed, "stopping")
    shard = store.shard(job.id, 0)
    assert (shard.state, shard.failures, shard.error, shard.running_tokens) == (ShardState.PENDING, 0, None, 0)
    assert check(store, job.id).notice is None
    assert {(a.outcome, a.error, a.tokens) for a in store.attempts(job.id)} == {("handed back", "stopping", 9)}
    store.hand_back(claim(store), "w: the disk is full", notice=True)
    assert store.job(job.id).notice == "w: the disk is full"


def test_a_beat_stores_progress_and_brings_the_cancel(store: Store) -> None:
    job = submit(store, 2)
    claimed = claim(store)
    revision = store.job(job.id).revision
    assert store.beat(claimed, sequences=2, tokens=30) == store.beat(claimed, sequences=3, tokens=40)
    shard = store.shard(job.id, 0)
    assert (shard.beat, shard.running_sequences, shard.running_tokens) == (2, 3, 40)
    assert store.running_progress(job.id) == (3, 40)
    assert store.job(job.id).revision == revision  # nothing that the manifest shows
    store.cancel(job.id)
    beat = store.beat(claimed, sequences=3, tokens=40)
    assert (beat.cancel, beat.lost) == (True, False)
    store.hand_back(claimed, "cancelled")
    assert store.beat(claimed, sequences=3, tokens=40).lost
    assert store.running_progress(job.id) == (0, 0)


def test_who_lost_the_fence_changes_nothing(store: Store) -> None:
    job = submit(store, 1)
    zombie = claim(store, "zombie")
    assert store.reap(job.id, 0, 1, beat=0, reason="silent", limit=LIMIT)
    before = (store.job(job.id), store.shards(job.id), store.attempts(job.id))
    assert store.beat(zombie, sequences=1, tokens=1).lost
    assert not store.commit(zombie, result())
    assert store.fail(zombie, "boom", limit=1) is ShardState.PENDING
    store.hand_back(zombie, "stopping", notice=True)
    assert store.pin_identity(zombie, {"model": "zombie's"}) == {"model": "zombie's"}
    assert (store.job(job.id), store.shards(job.id), store.attempts(job.id)) == before
    heir = claim(store, "heir")
    assert heir.shard.attempt == 2
    assert not store.commit(zombie, result())
    assert store.beat(zombie, sequences=1, tokens=1).lost
    assert store.commit(heir, result())
    assert not store.commit(zombie, result())
    assert check(store, job.id).state is JobState.SUCCEEDED


def test_claims_of_a_job_that_is_gone(store: Store) -> None:
    job = submit(store, 1)
    claimed = claim(store)
    assert store.fail_job(claimed, "no such model")
    store.tombstone(job.id)
    store.purge(job.id)
    assert store.beat(claimed, sequences=0, tokens=0).lost
    assert not store.commit(claimed, result())
    assert store.fail(claimed, "boom", limit=1) is ShardState.CANCELLED
    store.hand_back(claimed, "stopping")


def test_the_first_claim_pins_what_the_model_is(store: Store) -> None:
    job = submit(store, 2)
    first, second = claim(store), claim(store)
    assert store.pin_identity(first, {"model": "a1"}) == {"model": "a1"}
    assert store.pin_identity(second, {"model": "b2"}) == {"model": "a1"}
    assert store.job(job.id).identity == {"model": "a1"}
