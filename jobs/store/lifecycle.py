"""What people, and the reaper, do to a job: cancel, retry, seal, fail, take back, delete."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select, update

from jobs.errors import WrongState
from jobs.records import Claim, Job, Shard, Worker
from jobs.states import JobState, ShardState, broken_off
from jobs.store.locked import AT_REST, LockedJob
from jobs.store.part import IS_RUNNING, NOW, Part, through
from jobs.store.rows import JOB_COLUMNS, SHARD_COLUMNS, WORKER_COLUMNS, job_record, shard_record, worker_record
from jobs.store.schema import attempts, job_labels, jobs, shards, store, webhooks


class Lifecycle(Part):
    def cancel(self, job_id: str) -> Job:
        """Stop a job: its pending shards at once, its running ones as soon as their workers hear of it.

        Done shards stay. Calling again changes nothing; WrongState for a job that succeeded or failed.
        """
        with self.db.transaction() as connection:
            job = LockedJob.take(connection, job_id)
            if job.state in (JobState.SUCCEEDED, JobState.FAILED):
                raise WrongState(f"job {job_id} has already {job.state}; there is nothing left to cancel")
            if not job.state.ended and job.state is not JobState.CANCELLING:
                _seal(job, "the job was cancelled")
                job.move(ShardState.PENDING, ShardState.CANCELLED)
                if job.counts[ShardState.RUNNING]:
                    job.enter(JobState.CANCELLING)
                job.settle()
                job.save()
            return _read(connection, job_id)

    def retry(self, job_id: str, *, failed_only: bool = False) -> Job:
        """Queue the failed shards of an ended job again, and unless `failed_only` the cancelled ones; done ones stay.

        Their failures start from zero, their attempts go on. An end that was not told yet is not told any more.
        WrongState if the job has not ended, or has no such shard.
        """
        with self.db.transaction() as connection:
            job = LockedJob.take(connection, job_id)
            if not job.state.ended:
                raise WrongState(f"job {job_id} is {job.state}; cancel it, or wait for its end, before retrying")
            sources = [ShardState.FAILED] if failed_only else [ShardState.FAILED, ShardState.CANCELLED]
            moved = sum(
                job.move(source, ShardState.PENDING, failures=0, error=None) for source in sources if job.counts[source]
            )
            if not moved:
                left = f"; {job.counts[ShardState.CANCELLED]:,} were cancelled: retry without --failed-only for those"
                hint = left if job.counts[ShardState.CANCELLED] else ""
                raise WrongState(f"job {job_id} is {job.state}: it has no failed shard to retry{hint}")
            job.enter(JobState.QUEUED)
            job.set(error=None, notice=None, ended_at=None, waiting_since=NOW)
            if not job.counts[ShardState.DONE]:
                job.set(identity=None)  # nothing was made yet, so whatever the model is now may be pinned
            job.save()
            connection.execute(delete(webhooks).where(webhooks.c.job_id == job_id, webhooks.c.delivered_at.is_(None)))
            return _read(connection, job_id)

    def fail_job(self, claim: Claim, error: str) -> bool:
        """The job's own error: nothing of it can run anywhere. Running shards are fenced off; done ones stay.

        False, and nothing changes, if the claim was fenced off.
        """
        job_id, index, attempt = claim.key
        with self.db.transaction() as connection:
            job = LockedJob.find(connection, job_id)
            if job is None or job.running(index, attempt) is None:
                return False
            _end_running_attempts(connection, job_id, error)
            for source in (ShardState.PENDING, ShardState.RUNNING):
                job.move(source, ShardState.FAILED, error=error, **AT_REST)
            _seal(job, f"the job failed: {error}")
            job.enter(JobState.FAILED)
            job.set(error=error, ended_at=NOW)
            job.save()
            return True

    def running_beats(self) -> list[tuple[Shard, Worker | None]]:
        """Every running shard, and who runs it as far as that worker has registered."""
        query = through(select(*SHARD_COLUMNS).where(IS_RUNNING), shards, "shards_running")
        with self.db.reading() as connection:
            running = connection.execute(query).all()
            known = {row.id: worker_record(row) for row in connection.execute(select(*WORKER_COLUMNS))}
        return [(shard, known.get(shard.worker_id or "")) for shard in map(shard_record, running)]

    def touch(self) -> None:
        """Write, and change nothing: it waits or raises where no heartbeat can be written either."""
        with self.db.transaction() as connection:
            connection.execute(update(store).values(id=store.c.id))

    def reap(self, job_id: str, shard: int, attempt: int, *, beat: int, reason: str, limit: int) -> bool:
        """Take a shard back from a worker that died or stopped answering, which counts as a failure.

        Only if it is still that attempt, running, and its heartbeat still stands at `beat`; else False.
        """
        with self.db.transaction() as connection:
            job = LockedJob.find(connection, job_id)
            if job is None or job.running(shard, attempt) is None:
                return False
            # Beats do not take the job's lock: only this holds the shard's own row against one that comes just now.
            still = (shards.c.job_id == job_id, shards.c.index == shard, shards.c.beat == beat)
            row = connection.execute(select(shards).where(*still).with_for_update()).one_or_none()
            if row is None:
                return False
            job.fall_back(row, "reaped", reason, failures=1, limit=limit)
            job.save()
            return True

    def tombstone(self, job_id: str) -> None:
        """Delete an ended job for everyone but gc, which removes its files and then purges its row. Frees its key."""
        with self.db.transaction() as connection:
            job = LockedJob.take(connection, job_id)
            if not job.state.ended:
                raise WrongState(f"job {job_id} is {job.state}; cancel it before deleting it")
            _delete(job)

    def past_ttl(self) -> list[str]:
        """Ids of ended jobs that have been kept for as long as was asked. One without a ttl is never among them."""
        with self.db.reading() as connection:
            return list(connection.scalars(through(select(jobs.c.id).where(*_PAST_TTL), jobs, "jobs_ttl")))

    def tombstone_past_ttl(self) -> list[str]:
        """Tombstone what is past its ttl, each by itself; the ids. One that was retried meanwhile stays."""
        gone = []
        for job_id in self.past_ttl():
            with self.db.transaction() as connection:
                job = LockedJob.find(connection, job_id)
                this = select(jobs.c.id).where(jobs.c.id == job_id, *_PAST_TTL)
                if job is not None and connection.scalar(this) is not None:
                    _delete(job)
                    gone.append(job_id)
        return gone

    def tombstoned(self) -> list[Job]:
        """Deleted jobs whose rows still stand."""
        with self.db.reading() as connection:
            rows = connection.execute(select(*JOB_COLUMNS).where(jobs.c.deleted_at.is_not(None)))
            return [job_record(row) for row in rows]

    def purge(self, job_id: str) -> None:
        """Remove the row of a deleted job, and with it its shards and attempts. Its files must be gone before."""
        with self.db.transaction() as connection:
            connection.execute(delete(jobs).where(jobs.c.id == job_id, jobs.c.deleted_at.is_not(None)))


# `ttl IS NOT NULL` is what the partial index `jobs_ttl` holds.
_PAST_TTL = (
    jobs.c.ttl.is_not(None),
    jobs.c.ended_at.is_not(None),
    jobs.c.ended_at + jobs.c.ttl <= NOW,
    jobs.c.deleted_at.is_(None),
)


def _seal(job: LockedJob, why: str) -> None:
    """End the stream that may still feed the job: what more was to come is missing, also after a retry."""
    if not job.sealed:
        job.sealed = True
        job.set(truncated=broken_off(job.row.num_prompts, why), feeder=None)


def _delete(job: LockedJob) -> None:
    job.set(deleted_at=NOW, idempotency_key=None)
    job.save()
    job.connection.execute(delete(job_labels).where(job_labels.c.job_id == job.id))


def _read(connection: Connection, job_id: str) -> Job:
    return job_record(connection.execute(select(*JOB_COLUMNS).where(jobs.c.id == job_id)).one())


def _end_running_attempts(connection: Connection, job_id: str, error: str) -> None:
    tokens = (
        select(shards.c.running_tokens)
        .where(shards.c.job_id == attempts.c.job_id, shards.c.index == attempts.c.shard)
        .scalar_subquery()
    )
    unended = (attempts.c.job_id == job_id, attempts.c.ended_at.is_(None))
    values = {"ended_at": NOW, "outcome": "failed", "error": error, "tokens": tokens}
    connection.execute(update(attempts).where(*unended).values(values))
