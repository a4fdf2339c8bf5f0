"""Jobs without prompts and results without files: the store never looks at either."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from sqlalchemy import select, update

from jobs.paths import new_job_id
from jobs.records import Claim, Job, NewJob, ShardRange, ShardResult
from jobs.states import ShardState
from jobs.store import Store
from jobs.store.schema import job_labels, jobs

LABELS = {"made": "here"}
PER_SHARD = 3  # prompts
SAMPLES = 2
LIMIT = 3  # failures


def a_job(shards: int = 2, *, owner: str = "ada", **changes: Any) -> NewJob:
    """A job to be; `changes` are fields of NewJob, or of its spec."""
    fields = {name: changes.pop(name) for name in list(changes) if name in NewJob.__dataclass_fields__}
    spec = {"kind": "generate", "model": "org/model", "adapter": None, "name": None, "labels": LABELS}
    spec |= {"queue": "default", "priority": 0} | changes
    digests = {"spec_digest": "spec", "snapshot_digest": "snapshot", "samples": SAMPLES}
    defaults = {"id": new_job_id(), "owner": owner, "spec": spec, "num_prompts": shards * PER_SHARD, **digests}
    return NewJob(**defaults | fields)  # type: ignore[arg-type]


def ranges(shards: int) -> Iterator[ShardRange]:
    for i in range(shards):
        yield ShardRange(0, i * PER_SHARD, (i + 1) * PER_SHARD, i * PER_SHARD)


def submit(store: Store, shards: int = 2, **changes: Any) -> Job:
    job, created = store.create_job(a_job(shards, **changes), ranges(shards))
    assert created
    return job


def try_claim(store: Store, worker: str = "w", **options: Any) -> Claim | None:
    defaults: dict[str, Any] = {"queues": ["default"], "model": None, "age_limit": 600.0}
    return store.claim(worker, **defaults | options)


def claim(store: Store, worker: str = "w", **options: Any) -> Claim:
    claimed = try_claim(store, worker, **options)
    assert claimed is not None
    return claimed


def result(tokens: int = 10, *, errors: int = 0) -> ShardResult:
    """A result with a file that no other has."""
    stem = uuid4().hex
    return ShardResult(
        file=f"shards/{stem}.parquet",
        errors_file=f"errors/{stem}.jsonl" if errors else None,
        sha256="0" * 64,
        bytes=100,
        sequences=(PER_SHARD - errors) * SAMPLES,
        tokens=tokens,
        prompt_errors=errors,
        details={"gen_batch_size": 32},
    )


def run_out(store: Store, worker: str = "w") -> int:
    """Claim and commit until nothing is pending; how many shards that was."""
    count = 0
    while (claimed := try_claim(store, worker)) is not None:
        assert store.commit(claimed, result())
        count += 1
    return count


def check(store: Store, job_id: str) -> Job:
    """What must hold of a job at any moment; returns its row."""
    job = store.job(job_id)
    totals = store.totals(job_id)
    assert {name: getattr(job, name) for name in totals} == totals
    if job.state.ended:
        assert job.pending_shards == job.running_shards == 0
        assert job.ended_at is not None
    for shard in store.shards(job_id):
        assert (shard.file is not None) == (shard.state is ShardState.DONE)
    with store.db.reading() as connection:
        assert set(connection.scalars(select(job_labels.c.state).where(job_labels.c.job_id == job_id))) == {job.state}
    done = [a for a in store.attempts(job_id) if a.outcome == "done"]
    assert len(done) == len({a.shard for a in done}) == job.done_shards
    running = [a for a in store.attempts(job_id) if a.outcome is None]
    assert len(running) == job.running_shards
    return job


def age(store: Store, job_id: str, seconds: float) -> None:
    """Make a job wait, without waiting."""
    with store.db.transaction() as connection:
        older = {name: jobs.c[name] - seconds for name in ("waiting_since", "created_at")}
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(**older))
        labels = update(job_labels).where(job_labels.c.job_id == job_id)
        connection.execute(labels.values(created_at=job_labels.c.created_at - seconds))
