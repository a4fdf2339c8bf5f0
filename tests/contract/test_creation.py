"""Submitting: all or nothing, once per key."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from jobs.errors import IdempotencyConflict, JobNotFound, UsageError
from jobs.records import ShardRange
from jobs.states import JobState, ShardState
from jobs.store import Store
from tests.contract.helpers import a_job, check, ranges, submit


def test_a_job_is_created_whole(store: Store) -> None:
    new = a_job(5, labels={"run": "7"}, name="first", priority=3, adapter="org/adapter")
    job, created = store.create_job(new, ranges(5))
    assert created
    assert job == store.job(new.id) == check(store, new.id)
    assert (job.state, job.num_shards, job.pending_shards, job.num_prompts, job.num_sequences) == (
        JobState.QUEUED,
        5,
        5,
        15,
        30,
    )
    assert (job.labels, job.name, job.priority, job.adapter, job.spec) == (
        {"run": "7"},
        "first",
        3,
        "org/adapter",
        new.spec,
    )
    assert [(s.index, s.start, s.stop, s.first_prompt) for s in store.shards(job.id)] == [
        (i, 3 * i, 3 * i + 3, 3 * i) for i in range(5)
    ]


def test_many_shards_keep_their_order(store: Store) -> None:
    job = submit(store, 2_345)
    assert job.num_shards == 2_345
    assert [s.start for s in store.iter_shards(job.id, ShardState.PENDING)] == [3 * i for i in range(2_345)]


def test_a_failure_in_the_middle_leaves_no_row(store: Store) -> None:
    def broken() -> Iterator[ShardRange]:
        yield from ranges(1_500)
        raise OSError("the snapshot cannot be read")

    new = a_job(3_000)
    with pytest.raises(OSError, match="snapshot"):
        store.create_job(new, broken())
    with pytest.raises(JobNotFound):
        store.job(new.id)


def test_nothing_to_do_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="at least one"):
        store.create_job(a_job(0), ranges(0))
    assert store.jobs() == []


def test_the_same_key_returns_the_older_job(store: Store) -> None:
    first = submit(store, idempotency_key="k")
    again, created = store.create_job(a_job(idempotency_key="k"), ranges(2))
    assert (again, created) == (first, False)
    assert len(store.jobs()) == 1


@pytest.mark.parametrize(("digest", "what"), [("spec_digest", "settings"), ("snapshot_digest", "prompts")])
def test_the_same_key_for_another_job_is_an_error(store: Store, digest: str, what: str) -> None:
    first = submit(store, idempotency_key="k")
    with pytest.raises(IdempotencyConflict, match=rf"{first.id}.*other {what}"):
        store.create_job(replace(a_job(idempotency_key="k"), **{digest: "different"}), ranges(2))


def test_keys_belong_to_owners(store: Store) -> None:
    assert submit(store, idempotency_key="k").id != submit(store, idempotency_key="k", owner="bob").id


def test_a_race_for_one_key_has_one_winner(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: store.create_job(a_job(40, idempotency_key="k"), ranges(40)), range(8)))
    assert sum(created for _, created in outcomes) == 1
    assert len({job.id for job, _ in outcomes}) == 1
    assert [job.num_shards for job in store.jobs()] == [40]


def test_text_that_a_database_would_refuse(store: Store) -> None:
    job = submit(store, name="nul \x00, half \ud83d", labels={"k\x00": "v\ud83d"})
    assert store.job(job.id).name == "nul \ufffd, half ?"
    assert [j.id for j in store.jobs(label=("k\x00", "v\ud83d"))] == [job.id]
