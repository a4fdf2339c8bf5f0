"""Finding jobs, and the books that the manifest and gc are kept by."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from jobs.errors import JobNotFound
from jobs.processes import ProcessName
from jobs.records import LostSpec
from jobs.states import JobState, ShardState
from jobs.store import Store
from tests.contract.helpers import age, claim, result, run_out, submit

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


def test_filters_and_pages(store: Store) -> None:
    a = submit(store, 1, labels={"run": "7", "odd %_'\"key": "x"}, name="Night_Run")
    b = submit(store, 1, owner="bob", labels={"run": "8"}, model="org/100%")
    c = submit(store, 1, queue="gpu", adapter="org/lora")
    store.cancel(b.id)
    for older, job in enumerate((c, b, a)):
        age(store, job.id, older * 10)

    def found(**filters: object) -> list[str]:
        return [job.id for job in store.jobs(**filters)]  # type: ignore[arg-type]

    assert found() == [c.id, b.id, a.id]
    assert found(states=[JobState.QUEUED]) == [c.id, a.id]
    assert found(states=[]) == []
    assert found(owner="bob") == found(model="org/100%") == found(label=("run", "8")) == [b.id]
    assert found(label=("run", None)) == [b.id, a.id]
    assert found(label=("odd %_'\"key", "x")) == [a.id]
    assert found(queue="gpu") == found(text="LORA") == [c.id]
    assert found(text="night_") == [a.id]
    assert found(text="100%") == [b.id]
    assert found(text="_") == [a.id]  # a character, not a pattern
    assert found(text=b.id[:8]) == [b.id]
    assert found(limit=2) == [c.id, b.id]
    assert found(limit=2, before=(store.job(b.id).created_at, b.id)) == [a.id]


def test_pages_of_jobs_created_at_the_same_moment(store: Store) -> None:
    from sqlalchemy import update

    from jobs.store.schema import jobs

    made = sorted(submit(store, 1).id for _ in range(5))
    with store.db.transaction() as connection:
        connection.execute(update(jobs).values(created_at=1e9))
    seen: list[str] = []
    page = store.jobs(limit=2)
    while page:
        seen += [job.id for job in page]
        page = store.jobs(limit=2, before=(page[-1].created_at, page[-1].id))
    assert seen == made[::-1]


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
