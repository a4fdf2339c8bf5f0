"""Submitting: a job and all its shards, in one transaction, once per idempotency key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from jobs.errors import IdempotencyConflict, UsageError
from jobs.records import Job, NewJob, ShardRange
from jobs.states import JobState, ShardState
from jobs.store.part import Part
from jobs.store.rows import job_record, select_jobs
from jobs.store.schema import job_labels, jobs, now, shards

_CHUNK = 1_000  # shards inserted at once: bounded memory, and past the knee of speed


class Creation(Part):
    def create_job(self, new: NewJob, ranges: Iterable[ShardRange]) -> tuple[Job, bool]:
        """Commit a job with its shards; `ranges` may be lazy and of any length.

        Returns (job, True), or (older job, False) if its owner used the idempotency key before for the same resolved
        spec and snapshot. Raises IdempotencyConflict if it was for another, UsageError if there is nothing to do.
        """
        while True:
            older = self._older(new)
            if older is not None:
                return older, False
            try:
                with self.db.transaction() as connection:
                    _insert_job(connection, new)
                    _insert_shards(connection, new, ranges)
                    return job_record(connection.execute(select_jobs().where(jobs.c.id == new.id)).one()), True
            except IntegrityError:
                # Another submit with this key committed first: look again. A job's row is the first thing written,
                # so `ranges` is still whole. Without a key the id itself stands twice, which is a bug.
                if new.idempotency_key is None:
                    raise

    def _older(self, new: NewJob) -> Job | None:
        if new.idempotency_key is None:
            return None
        mine = (jobs.c.owner == new.owner, jobs.c.idempotency_key == new.idempotency_key)
        digests = select(jobs.c.id, jobs.c.spec_digest, jobs.c.snapshot_digest)
        with self.db.reading() as connection:
            row = connection.execute(digests.where(*mine)).one_or_none()
            if row is None:
                return None
            if (row.spec_digest, row.snapshot_digest) != (new.spec_digest, new.snapshot_digest):
                what = "settings" if row.spec_digest != new.spec_digest else "prompts"
                raise IdempotencyConflict(
                    f"idempotency key {new.idempotency_key!r} already stands for job {row.id}, which has other {what}; "
                    "use another key for another job"
                )
            return job_record(connection.execute(select_jobs().where(jobs.c.id == row.id)).one())


def _insert_job(connection: Connection, new: NewJob) -> None:
    spec = new.spec
    created = connection.scalar(select(now()))
    values: dict[str, Any] = {name: spec[name] for name in ("kind", "model", "queue", "priority")}
    values |= {name: spec.get(name) for name in ("adapter", "name")}
    values |= {
        name: getattr(new, name)
        for name in (
            "id",
            "owner",
            "spec",
            "spec_digest",
            "snapshot_digest",
            "idempotency_key",
            "num_prompts",
            "sealed",
            "feeder",
        )
    }
    values |= {"fed": None if new.sealed else 0}
    ttl = spec.get("ttl")  # days
    values |= {"ttl": None if ttl is None else ttl * 86_400}
    values |= {"num_sequences": new.num_prompts * new.samples, "state": JobState.QUEUED}
    connection.execute(insert(jobs).values(**values, created_at=created, waiting_since=created))
    of_job = {"job_id": new.id, "state": JobState.QUEUED, "created_at": created}
    labels = [of_job | {"key": key, "value": value} for key, value in (spec.get("labels") or {}).items()]
    if labels:
        connection.execute(insert(job_labels), labels)


def _insert_shards(connection: Connection, new: NewJob, ranges: Iterable[ShardRange]) -> None:
    count = insert_shards(connection, new.id, ranges, first=0)
    if not count and new.sealed:
        raise UsageError("there are no prompts; a job needs at least one")
    connection.execute(update(jobs).where(jobs.c.id == new.id).values(num_shards=count, pending_shards=count))


def insert_shards(connection: Connection, job_id: str, ranges: Iterable[ShardRange], *, first: int) -> int:
    """Pending shards from this index on; how many they are."""
    count = 0
    for chunk in _chunks(ranges):
        rows = [
            {
                "job_id": job_id,
                "index": index,
                "segment": shard.segment,
                "start": shard.start,
                "stop": shard.stop,
                "first_prompt": shard.first_prompt,
                "state": ShardState.PENDING,
            }
            for index, shard in enumerate(chunk, start=first + count)
        ]
        connection.execute(insert(shards), rows)
        count += len(rows)
    return count


def _chunks(ranges: Iterable[ShardRange]) -> Iterator[list[ShardRange]]:
    iterator = iter(ranges)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk
