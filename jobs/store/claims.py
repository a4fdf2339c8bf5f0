"""What a worker does with a shard: claim it, show that it lives, commit it or give it back.

Every claim raises the shard's `attempt`, and every later write holds only while the fence does: (job, shard, attempt)
and `state = 'running'`. Who lost the fence changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, func, insert, or_, select, update

from jobs.records import Beat, Claim, ShardResult
from jobs.states import JobState, ShardState
from jobs.store.choice import LoadedModel, best_job, pending_job
from jobs.store.locked import FENCE, LABELS, LockedJob
from jobs.store.part import IS_PENDING, IS_RUNNING, NOW, Part, through
from jobs.store.rows import JOB_COLUMNS, SHARD_COLUMNS, job_record, shard_record
from jobs.store.schema import attempts, jobs, shards
from jobs.store.sidecars import write_sidecars
from jobs.store.workers import tell

Key = tuple[str, int, int]  # (job, shard, attempt)


class Claims(Part):
    def claim(
        self,
        worker_id: str,
        *,
        queues: Sequence[str],
        model: LoadedModel | None,
        age_limit: float | None,
        served: Sequence[str] = (),
        exclude: Collection[str] = (),
    ) -> Claim | None:
        """Take the best pending shard of the best job; None if nothing is pending in these queues.

        The worker's row says so from then on.
        The job: an aged one first, of which no shard runs and none has ended for `age_limit` seconds, and of several
        the one that waits longest; so each of them is served in its turn, whatever stands below. Then by priority; by
        the fewest running shards of its owner; by `model`, the one loaded (model, adapter), its base; by the owner
        whom this worker has not served for longest (`served`: the owners it has, latest last); by the adapter; by the
        fewest sequences left to make; by age. Its shard: the lowest. Without `age_limit` no job is aged.
        """
        while True:
            with self.db.reading() as connection:  # an idle look takes no write lock
                best = connection.execute(*best_job(queues, model, age_limit, served, exclude)).one_or_none()
            if best is None:
                return None
            # One job's lock a transaction: two claimers that each went on to the other's job would wait for ever.
            with self.db.transaction() as connection:
                claim = _claim_in(connection, best.id, worker_id, aged=best.aged)
            if claim is not None:
                return claim  # else another claimer took the last one: look again

    def pending_exists(self, queues: Sequence[str], exclude: Collection[str] = ()) -> bool:
        """Is there a shard to claim?"""
        with self.db.reading() as connection:
            return connection.scalar(*pending_job(queues, exclude)) is not None

    def unfinished_exists(self, queues: Sequence[str]) -> bool:
        """Is there a shard that is pending or running, in whatever hands, or a job that is fed and may bring some?"""
        unfinished = or_(jobs.c.pending_shards + jobs.c.running_shards > 0, jobs.c.sealed.is_(False))
        query = select(jobs.c.id).where(jobs.c.ended_at.is_(None), jobs.c.queue.in_(queues), unfinished).limit(1)
        with self.db.reading() as connection:
            return connection.scalar(through(query, jobs, "jobs_open")) is not None

    def beat(self, claim: Claim, *, sequences: int, tokens: int, **worker: Any) -> Beat:
        """Show that the attempt lives, and how far it is; `worker`: columns of the worker's row, which lives as well.

        Touches only the shard's own row and the worker's: it waits for no one.
        """
        job_id, index, attempt = claim.key
        key = {"job": job_id, "shard": index, "of_attempt": attempt}
        with self.db.transaction() as connection:
            updated = connection.execute(_BEAT, {**key, "made": sequences, "made_tokens": tokens})
            tell(connection, claim.worker_id, worker)
            state = connection.scalar(_STATE, {"job": job_id})
            return Beat(cancel=state == JobState.CANCELLING, lost=updated.rowcount == 0)

    def commit(self, claim: Claim, result: ShardResult) -> bool:
        """Make `result` the shard's. True if it is, also when an earlier call did it and its reply was lost.

        False: fenced off, the files are nobody's. Ends the job with its last shard; kept while cancelling, too.
        Raises StoreError if the database did not answer; then call again.
        """
        _, index, attempt = claim.key
        with self.db.transaction() as connection:
            job = LockedJob.find(connection, claim.job.id)
            if job is None:
                return False
            if job.running(index, attempt) is None:
                return _names(connection, claim.job.id, index, result.file)
            job.finish(index, attempt, result)
            write_sidecars(connection, result.sidecars)
            job.settle()
            job.save()
            return True

    def names_file(self, job_id: str, shard: int, file: str) -> bool:
        """Does the shard's row name this file, as its rows or as its prompt errors?"""
        with self.db.reading() as connection:
            return _names(connection, job_id, shard, file)

    def fail(self, claim: Claim, error: str, *, limit: int) -> ShardState:
        """The shard's own failure: one more, and at `limit` of them it stays failed.

        Returns the shard's new state, or the one it has if the claim was fenced off.
        """
        state = self._give_back(claim.key, "failed", error, failures=1, limit=limit)
        if state is None:
            with self.db.reading() as connection:
                state = connection.scalar(select(shards.c.state).where(*_shard(claim.job.id, claim.shard.index)))
        return ShardState(state or ShardState.CANCELLED)

    def hand_back(self, claim: Claim, reason: str, *, notice: bool = False) -> bool:
        """Return the shard for no fault of its own. `notice`: the reason also shows on the job.

        False, and nothing changes, if the claim was fenced off.
        """
        return self._give_back(claim.key, "handed back", reason, notice=notice) is not None

    def hand_back_all(self, worker_id: str, reason: str) -> int:
        """Return every shard that this worker holds, for no fault of theirs; how many those were.

        For a worker that runs nothing: after the database was away it cannot know what became of its last claim.
        """
        held = select(shards.c.job_id, shards.c.index, shards.c.attempt).where(
            shards.c.worker_id == worker_id, IS_RUNNING
        )
        with self.db.reading() as connection:
            keys = connection.execute(through(held, shards, "shards_running")).all()
        for job_id, index, attempt in keys:
            self._give_back((job_id, index, attempt), "handed back", reason)
        return len(keys)

    def _give_back(
        self, key: Key, outcome: str, reason: str, *, failures: int = 0, limit: int = 0, notice: bool = False
    ) -> ShardState | None:
        """The shard's new state; None if the fence does not hold."""
        job_id, index, attempt = key
        with self.db.transaction() as connection:
            job = LockedJob.find(connection, job_id)
            shard = job.running(index, attempt) if job else None
            if job is None or shard is None:
                return None
            if notice:
                job.set(notice=reason)
            if not failures and job.state is JobState.CANCELLING:
                outcome = "cancelled"
            state = job.fall_back(shard, outcome, reason, failures=failures, limit=limit)
            job.save()
            return state

    def pin_identity(self, claim: Claim, identity: dict[str, str]) -> dict[str, str]:
        """What the job's model is: set by the first claim that asks, and what was set for all others."""
        job_id, index, attempt = claim.key
        with self.db.transaction() as connection:
            job = LockedJob.find(connection, job_id)
            if job is None:
                return identity
            if job.row.identity is not None:
                pinned: dict[str, str] = job.row.identity
                return pinned
            if job.running(index, attempt) is not None:
                job.set(identity=identity)
                job.save()
            return identity


def _shard(job_id: str, index: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return shards.c.job_id == job_id, shards.c.index == index


def _names(connection: Connection, job_id: str, index: int, file: str) -> bool:
    named = or_(shards.c.file == file, shards.c.errors_file == file)
    return connection.scalar(select(shards.c.index).where(*_shard(job_id, index), named)) is not None


def _claim_in(connection: Connection, job_id: str, worker_id: str, *, aged: bool) -> Claim | None:
    """Take the job's lowest pending shard, if there still is one.

    As a `LockedJob` would, in fewer statements: the first locks the job's row, walks its edge and keeps its counters.
    """
    job = connection.execute(_SERVE, {"job": job_id}).one_or_none()
    if job is None:
        return None
    shard = connection.execute(_BEGIN, {"job": job_id, "worker": worker_id}).one()
    key = {"job_id": job_id, "shard": shard._mapping["index"], "attempt": shard.attempt}
    connection.execute(_ATTEMPT, {**key, "worker_id": worker_id, "claimed_at": shard.claimed_at})
    known = tell(connection, worker_id, {"job_id": job_id, "shard": shard._mapping["index"]})
    claim = Claim(job_record(job), shard_record(shard), worker_id, aged=bool(aged), known=known)
    if claim.job.labels:
        connection.execute(LABELS, {"job": job_id, "new": JobState.RUNNING})
    return claim


_STATE = select(jobs.c.state).where(jobs.c.id == bindparam("job"))
_BEAT = (
    update(shards)
    .where(*FENCE)
    .values(beat=shards.c.beat + 1, running_sequences=bindparam("made"), running_tokens=bindparam("made_tokens"))
)
_SERVE = (
    update(jobs)
    .where(
        jobs.c.id == bindparam("job"),
        jobs.c.state.in_([JobState.QUEUED, JobState.RUNNING]),
        jobs.c.pending_shards > 0,
        jobs.c.deleted_at.is_(None),
    )
    .values(
        state=JobState.RUNNING,
        pending_shards=jobs.c.pending_shards - 1,
        running_shards=jobs.c.running_shards + 1,
        started_at=func.coalesce(jobs.c.started_at, NOW),
        revision=jobs.c.revision + 1,
    )
    .returning(*JOB_COLUMNS)
)
_LOWEST = through(
    select(shards.c.index).where(shards.c.job_id == bindparam("job"), IS_PENDING).order_by(shards.c.index).limit(1),
    shards,
    "shards_pending",
)
_BEGIN = (
    update(shards)
    # `correlate`: of its own, though it stands in an update of the same table.
    .where(shards.c.job_id == bindparam("job"), shards.c.index == _LOWEST.correlate(None).scalar_subquery(), IS_PENDING)
    .values(
        state=ShardState.RUNNING,
        attempt=shards.c.attempt + 1,
        worker_id=bindparam("worker"),
        beat=0,
        claimed_at=NOW,
        ended_at=None,
    )
    .returning(*SHARD_COLUMNS)
)
_ATTEMPT = insert(attempts)
