"""Finding a job, and the books that the manifest and gc are kept by."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from jobs.errors import JobNotFound
from jobs.processes import ProcessName
from jobs.records import LostSpec, Span
from jobs.states import ShardState
from jobs.store import Store
from tests.contract.helpers import PER_SHARD, claim, result, run_out, submit

PROCESS = ProcessName("host", 123, 1e9, "boot")


def test_a_unique_prefix_is_enough(store: Store) -> None:
    ids = ["abc123", "abc124", "abd000", "abc1234"]
    for job_id in ids:
        submit(store, 1, id=job_id)
    assert store.job("abd").id == "abd000"
    assert store.job("abc123").id == "abc123"  # a whole id, though another begins with it
    with pytest.raises(JobNotFound, match=r"abc could be any of abc123, abc1234, abc124; give one of these ids"):
        store.job("abc")
    for unknown in ("abe", "%", "ab_000", "ABC123"):
        with pytest.raises(JobNotFound, match="seqproc list"):
            store.job(unknown)
    for i in range(3):
        submit(store, 1, id=f"abc13{i}")
    with pytest.raises(JobNotFound, match=", …; give one"):
        store.job("a")


def test_an_empty_id_is_no_prefix(store: Store) -> None:
    submit(store, 1)
    with pytest.raises(JobNotFound, match="the job's id is empty"):
        store.job("")


def test_a_name_is_enough_if_no_id_begins_so(store: Store) -> None:
    first, twin = submit(store, 1, name="night run"), submit(store, 1, id="abc123", name="twin")
    submit(store, 1, name="abc")
    assert store.job("night run") == first
    assert store.job("abc") == twin
    submit(store, 1, name="twin")
    with pytest.raises(JobNotFound, match="twin could be any of"):
        store.job("twin")


def test_the_shard_that_holds_a_prompt(store: Store) -> None:
    submit(store, 4)
    job = submit(store, 5)
    for prompt in range(5 * PER_SHARD):
        shard = store.shard_of(job.id, prompt)
        assert (shard.job_id, shard.index) == (job.id, prompt // PER_SHARD)
    for prompt in (5 * PER_SHARD, 10**9):
        with pytest.raises(JobNotFound, match=f"job {job.id} has no prompt {prompt}"):
            store.shard_of(job.id, prompt)


def test_the_files_of_done_shards(store: Store) -> None:
    job = submit(store, 4)
    assert store.committed(job.id) == []
    for tokens in (5, 7):
        assert store.commit(claim(store), result(tokens))
    claim(store)
    found = store.committed(job.id)
    assert [(item.shard, item.file, item.tokens) for item in found] == [
        (shard.index, shard.file, shard.tokens) for shard in store.shards(job.id, states=[ShardState.DONE])
    ]
    assert [item.tokens for item in found] == [5, 7]


def test_shards_by_state(store: Store) -> None:
    job = submit(store, 4)
    store.commit(claim(store), result())
    claim(store)
    assert [s.index for s in store.shards(job.id, states=[ShardState.DONE, ShardState.RUNNING])] == [0, 1]
    assert [s.index for s in store.iter_shards(job.id, ShardState.PENDING)] == [2, 3]
    with pytest.raises(JobNotFound, match="no shard 4"):
        store.shard(job.id, 4)


def test_the_manifest_is_behind_until_it_shows_the_last_revision(store: Store) -> None:
    job = submit(store, 1)
    assert store.jobs_with_old_manifest() == []
    run_out(store)
    assert store.jobs_with_old_manifest() == [job.id]
    revision = store.job(job.id).revision
    assert not store.manifest_written(job.id, revision - 1)
    assert store.jobs_with_old_manifest() == [job.id]
    assert store.manifest_written(job.id, revision)
    assert store.jobs_with_old_manifest() == []
    assert (store.job(job.id).revision, store.job(job.id).manifest_revision) == (revision, revision)


def test_workers_come_beat_and_go(store: Store) -> None:
    store.register_worker("w1", PROCESS, queues=["default", "gpu"])
    store.register_worker("w2", PROCESS, queues=["gpu"], device="cpu")
    assert store.worker_beat("w1", device="cuda:0", model="org/model", job_id="j", shard=3, tokens_per_second=1.5)
    one, two = store.workers()
    assert (one.id, one.queues, one.device, one.model, one.job_id, one.shard) == (
        "w1", ["default", "gpu"], "cuda:0", "org/model", "j", 3,
    )  # fmt: skip
    assert (one.host, one.pid, one.process_started, one.boot_id) == ("host", 123, 1e9, "boot")
    assert (one.beat, two.beat, two.model, two.device) == (1, 0, None, "cpu")
    assert one.seen_at >= one.started_at
    assert store.worker_beat("w1", paused="the disk is full", job_id=None)
    assert (store.workers()[0].paused, store.workers()[0].job_id) == ("the disk is full", None)
    store.register_worker("w1", PROCESS, queues=["default"])
    assert {w.id: (w.beat, w.paused) for w in store.workers()} == {"w1": (0, None), "w2": (0, None)}
    store.forget_worker("w1")
    store.forget_worker("w1")
    assert not store.worker_beat("w1")
    assert [w.id for w in store.workers()] == ["w2"]


def test_a_claim_and_its_beats_show_in_the_workers_row(store: Store) -> None:
    job = submit(store, 2)
    store.register_worker("w1", PROCESS, queues=["default"])
    assert store.idle_workers("default") == 1
    mine = claim(store, "w1")
    one = store.workers()[0]
    assert mine.known and (one.job_id, one.shard, one.beat) == (job.id, 0, 1)
    assert store.idle_workers("default") == 0
    assert not store.beat(mine, sequences=1, tokens=5, tokens_per_second=2.5, memory_used=7).lost
    one = store.workers()[0]
    assert (one.tokens_per_second, one.memory_used, one.job_id, one.shard, one.beat) == (2.5, 7, job.id, 0, 2)
    assert one.seen_at >= store.shard(job.id, 0).claimed_at
    assert not claim(store, "a stranger").known


def test_a_damaged_spec_hides_no_other_job_and_can_be_claimed(store: Store) -> None:
    """Its worker is the one to say that the job cannot run."""
    damaged, whole = submit(store, 1, id="a"), submit(store, 1, id="b")
    with store.db.transaction() as connection:
        connection.execute(text("UPDATE jobs SET spec = :spec WHERE id = 'a'"), {"spec": '["no spec"]'})
        connection.execute(text("UPDATE jobs SET spec = :spec WHERE id = 'b'"), {"spec": '{"labels": "x"}'})
    spec = store.job(damaged.id).spec
    assert isinstance(spec, LostSpec)
    assert (spec, spec.stored, spec["seed"]) == ({}, ["no spec"], None)
    assert store.job(whole.id).labels == {}
    assert {job.id for job in store.jobs()} == {claim(store).job.id, claim(store).job.id} == {"a", "b"}


def test_spans_are_the_attempts_of_the_last_shards(store: Store) -> None:
    job = submit(store, 4)
    submit(store, 1)
    first = claim(store)
    store.hand_back(first, reason="stopped")
    run_out(store)
    attempts = {(a.shard, a.attempt): a for a in store.attempts(job.id)}
    spans = store.spans(job.id, limit=100)
    assert [(span.shard, span.attempt) for span in spans] == sorted(attempts, reverse=True)
    for span in spans:
        attempt = attempts[span.shard, span.attempt]
        assert all(getattr(span, name) == getattr(attempt, name) for name in Span.__dataclass_fields__)
    assert store.spans(job.id, limit=2) == spans[:2]


def test_shards_with_errors(store: Store) -> None:
    job = submit(store, 5)  # of three prompts each
    for errors in (0, 1, 0, 2, 1):
        assert store.commit(claim(store), result(errors=errors))
    found = [shard.index for shard in store.shards_with_errors(job.id, limit=9)]
    assert found == [1, 3, 4]
    assert [shard.index for shard in store.shards_with_errors(job.id, limit=2)] == [1, 3]
    for after, indices in ((4, [1, 3, 4]), (5, [3, 4]), (10, [3, 4]), (11, [4]), (14, [])):
        assert [shard.index for shard in store.shards_with_errors(job.id, after=after, limit=9)] == indices, after
