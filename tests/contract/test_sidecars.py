"""Sidecars in the database: of which file, in place of which other, and never of a shard that has none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.errors import JobNotFound
from jobs.records import Claim, Job, ShardResult, Sidecar
from jobs.store import Store
from tests.contract.helpers import check, claim, result, submit

SHA, OTHER = "0" * 64, "1" * 64  # `result` has the first


def sidecar(job: Job, shard: int = 0, name: str = "good", **changes: object) -> Sidecar:
    made = Sidecar(job.id, "reward", name, shard, SHA, f"sidecars/{name}-{shard}.parquet", "a" * 64, 10, 6, 1)
    return replace(made, **changes)  # type: ignore[arg-type]


def commit(store: Store, **changes: object) -> tuple[Claim, ShardResult]:
    claimed = claim(store)
    made = replace(result(), **changes)  # type: ignore[arg-type]
    assert store.commit(claimed, made)
    return claimed, made


def files(store: Store, job: Job, **where: int) -> list[str]:
    return [found.file for found in store.sidecars(job.id, **where)]


def test_of_the_shards_present_file_only(store: Store) -> None:
    job = submit(store, 2)
    assert not store.put_sidecar(sidecar(job)), "nothing is done yet"
    commit(store)
    assert not store.put_sidecar(sidecar(job, of_sha256=OTHER))
    assert not store.put_sidecar(sidecar(job, 1)), "still pending"
    assert not store.put_sidecar(sidecar(job, 7)), "there is no such shard"
    assert store.sidecars(job.id) == [] and store.sidecar_files(job.id) == set()
    before = check(store, job.id).revision
    assert store.put_sidecar(sidecar(job))
    assert check(store, job.id).revision == before + 1, "so that the manifest is behind"
    [found] = store.sidecars(job.id)
    assert found.created_at is not None and abs(found.created_at - store.clock()) < 60
    assert replace(found, created_at=None) == sidecar(job)
    assert found == store.sidecar(job.id, "reward", "good", 0)
    assert found.column == "reward_good"
    with pytest.raises(JobNotFound):
        store.put_sidecar(sidecar(replace(job, id="nothing")))


def test_the_newest_stands(store: Store) -> None:
    job = submit(store, 1)
    commit(store)
    assert store.put_sidecar(sidecar(job))
    assert store.put_sidecar(sidecar(job, file="sidecars/new.parquet", unjudged=0))
    assert store.put_sidecar(sidecar(job, file="sidecars/new.parquet", unjudged=0)), "again, after a lost reply"
    assert [(found.file, found.unjudged) for found in store.sidecars(job.id)] == [("sidecars/new.parquet", 0)]
    assert store.sidecar_files(job.id) == {"sidecars/new.parquet"}


def test_names_and_ranges(store: Store) -> None:
    job, other = submit(store, 4), submit(store, 1)
    for _ in range(5):
        commit(store)
    for name in ("b", "a", "B"):
        for shard in (3, 0, 1) if name != "B" else (2,):
            assert store.put_sidecar(sidecar(job, shard, name))
    assert store.put_sidecar(sidecar(job, 1, kind="score", file="sidecars/score.parquet"))
    assert store.sidecar_names(job.id) == [("reward", "B"), ("reward", "a"), ("reward", "b"), ("score", "good")]
    assert files(store, job, first=1, last=2) == [f"sidecars/{n}.parquet" for n in ("B-2", "a-1", "b-1", "score")]
    assert files(store, job)[1:4] == ["sidecars/a-0.parquet", "sidecars/a-1.parquet", "sidecars/a-3.parquet"]
    assert store.sidecar_names(other.id) == [] and files(store, other) == []
    assert store.sidecar(job.id, "reward", "a", 2) is None


def test_committed_with_its_shard_or_not_at_all(store: Store) -> None:
    job = submit(store, 2)
    commit(store, sidecars=(sidecar(job), sidecar(job, name="two")))
    assert store.sidecar_names(job.id) == [("reward", "good"), ("reward", "two")]
    late = claim(store)
    store.hand_back(late, "stopped")
    assert not store.commit(late, replace(result(), sidecars=(sidecar(job, 1),))), "fenced off"
    assert files(store, job, first=1) == []
    claimed, made = commit(store, sidecars=(sidecar(job, 1),))
    assert store.commit(claimed, made), "again, after a lost reply"
    assert files(store, job, first=1) == ["sidecars/good-1.parquet"]
    check(store, job.id)


def test_gone_with_the_job(store: Store) -> None:
    job = submit(store, 1)
    commit(store, sidecars=(sidecar(job),))
    store.tombstone(job.id)
    with pytest.raises(JobNotFound):
        store.put_sidecar(sidecar(job, name="late"))
    store.purge(job.id)
    assert store.sidecar_files(job.id) == set()
