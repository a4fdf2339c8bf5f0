"""Jobs that are fed: what their prompts' producer, and the reaper in its place, do to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from sqlalchemy import Connection, select, text, update

from jobs.errors import WrongState
from jobs.records import Feed, Job, ShardRange
from jobs.states import ShardState
from jobs.store.creation import insert_shards
from jobs.store.locked import LockedJob
from jobs.store.part import NOW, Part, through
from jobs.store.rows import JOB_COLUMNS, job_record
from jobs.store.schema import jobs, shards


class Feeding(Part):
    def append_prompts(
        self, job_id: str, first: int, count: int, ranges: Iterable[ShardRange], place: Callable[[int], None]
    ) -> Job:
        """Add shards over `count` prompts, the first of which is the job's `first`-th, to a job that is not sealed.

        `place` is called in the transaction with the number of their segment: when it returns, its file is there under
        its name. Whatever it raises undoes all of this. If the job has just these prompts already, nothing changes: an
        earlier call did it and its reply was lost. Raises WrongState if the job is sealed, or other prompts come next.
        """
        with self.db.transaction() as connection:
            job = LockedJob.take(connection, job_id)
            if job.row.num_prompts == first + count:
                return _read(connection, job_id)
            _check_open(job)
            if job.row.num_prompts != first:
                raise WrongState(
                    f"job {job_id} has {job.row.num_prompts:,} prompts, so that prompt {first:,} is not the next one: "
                    "somebody else feeds it too"
                )
            segment = _segments(connection, job_id)
            place(segment)
            its = (replace(shard, segment=segment) for shard in ranges)
            added = insert_shards(connection, job_id, its, first=job.row.num_shards)
            if not job.counts[ShardState.PENDING] + job.counts[ShardState.RUNNING]:
                job.set(waiting_since=NOW)  # it had nothing to be served
            job.counts[ShardState.PENDING] += added
            samples = select(jobs.c.spec["G"].as_integer()).where(jobs.c.id == job_id)
            total = first + count
            job.set(num_prompts=total, num_sequences=total * (connection.scalar(samples) or 1))
            job.set(num_shards=job.row.num_shards + added, fed=job.row.fed + 1)
            job.save()
            return _read(connection, job_id)

    def beat_feed(self, job_id: str) -> Job:
        """Show that whoever feeds the job lives. Raises WrongState if it is sealed, JobNotFound."""
        this = (jobs.c.id == job_id, jobs.c.sealed.is_(False), jobs.c.deleted_at.is_(None))
        with self.db.transaction() as connection:
            if not connection.execute(update(jobs).where(*this).values(fed=jobs.c.fed + 1)).rowcount:
                _check_open(LockedJob.take(connection, job_id))
            return _read(connection, job_id)

    def seal(self, job_id: str, *, truncated: str | None = None, fed: int | None = None) -> bool:
        """No more shards will come: the job may end. False, and nothing changes, if it is sealed already.

        `truncated`: why there are not more. `fed`: only while its feeder's heartbeats still stand there.
        """
        with self.db.transaction() as connection:
            job = LockedJob.take(connection, job_id)
            if job.sealed or fed not in (None, job.row.fed):
                return False
            job.sealed = True
            job.set(truncated=truncated, feeder=None)
            job.settle()
            job.save()
            return True

    def feeds(self) -> list[Feed]:
        """All jobs that are not sealed."""
        columns = (jobs.c.id.label("job_id"), jobs.c.num_prompts, jobs.c.fed, jobs.c.feeder)
        fed = (text("NOT sealed"), jobs.c.fed.is_not(None), jobs.c.deleted_at.is_(None))
        with self.db.reading() as connection:
            rows = connection.execute(through(select(*columns).where(*fed), jobs, "jobs_unsealed"))
            return [Feed(**row._mapping) for row in rows]

    def segments(self, job_id: str) -> int:
        """Of how many segments the job's prompts are."""
        with self.db.reading() as connection:
            return _segments(connection, job_id)

    def fix_snapshot(self, job_id: str, digest: str) -> None:
        """What the prompts of a sealed job are, once that is reckoned."""
        with self.db.transaction() as connection:
            job = LockedJob.take(connection, job_id)
            if job.sealed and not job.row.snapshot_digest:
                job.set(snapshot_digest=digest)
                job.save()


def _check_open(job: LockedJob) -> None:
    if job.sealed:
        why = job.row.truncated or f"it is {job.state}" if job.row.fed is not None else "it came with all its prompts"
        raise WrongState(f"job {job.id} takes no more prompts: {why}")


def _segments(connection: Connection, job_id: str) -> int:
    """They come in the order of their shards, so that the last one tells, however many there are."""
    its = select(shards.c.segment).where(shards.c.job_id == job_id)
    last = connection.scalar(its.order_by(shards.c.index.desc()).limit(1))
    return 0 if last is None else int(last) + 1


def _read(connection: Connection, job_id: str) -> Job:
    return job_record(connection.execute(select(*JOB_COLUMNS).where(jobs.c.id == job_id)).one())
