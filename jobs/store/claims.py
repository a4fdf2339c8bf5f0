"""What a worker does with a shard: claim it, show that it lives, commit it or give it back.

Every claim raises the shard's `attempt`, and every later write holds only while the fence does: (job, shard, attempt)
and `state = 'running'`. Who lost the fence changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, ScalarSelect, Select, and_, case, false, func, or_, select, update
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from jobs.records import Beat, Claim, ShardResult
from jobs.states import JobState, ShardState
from jobs.store.locked import LockedJob
from jobs.store.part import IS_PENDING, IS_RUNNING, Part, through
from jobs.store.rows import job_record, shard_record
from jobs.store.schema import jobs, now, shards

LoadedModel = tuple[str, str | None]  # (model, adapter)
Key = tuple[str, int, int]  # (job, shard, attempt)
Columns = ReadOnlyColumnCollection[str, Any]


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

        The job: an aged one first, of which no shard runs and none has ended for `age_limit` seconds, and of several
        the one that waits longest; so each of them is served in its turn, whatever stands below. Then by priority; by
        the fewest running shards of its owner; by `model`, the one loaded (model, adapter), its base; by the owner
        whom this worker has not served for longest (`served`: the owners it has, latest last); by the adapter; by the
        fewest sequences left to make; by age. Its shard: the lowest. Without `age_limit` no job is aged.
        """
        while True:
            with self.db.reading() as connection:  # an idle look takes no write lock
                best = connection.execute(_best_job(queues, model, age_limit, served, exclude)).one_or_none()
            if best is None:
                return None
            # One job's lock a transaction: two claimers that each went on to the other's job would wait for ever.
            with self.db.transaction() as connection:
                claim = _claim_in(connection, best.id, worker_id, aged=best.aged)
            if claim is not None:
                return claim  # else another claimer took the last one: look again

    def pending_exists(self, queues: Sequence[str], exclude: Collection[str] = ()) -> bool:
        """Is there a shard to claim?"""
        query = through(select(jobs.c.id).where(*_claimable(jobs.c, queues, exclude)).limit(1), jobs, "jobs_open")
        with self.db.reading() as connection:
            return connection.scalar(query) is not None

    def unfinished_exists(self, queues: Sequence[str]) -> bool:
        """Is there a shard that is pending or running, in whatever hands?"""
        unfinished = jobs.c.pending_shards + jobs.c.running_shards > 0
        query = select(jobs.c.id).where(jobs.c.ended_at.is_(None), jobs.c.queue.in_(queues), unfinished).limit(1)
        with self.db.reading() as connection:
            return connection.scalar(through(query, jobs, "jobs_open")) is not None

    def beat(self, claim: Claim, *, sequences: int, tokens: int) -> Beat:
        """Show that the attempt lives, and how far it is. Touches only the shard's own row: it waits for no one."""
        with self.db.transaction() as connection:
            updated = connection.execute(
                update(shards)
                .where(*_fence(claim))
                .values(beat=shards.c.beat + 1, running_sequences=sequences, running_tokens=tokens)
            )
            state = connection.scalar(select(jobs.c.state).where(jobs.c.id == claim.job.id))
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


def _fence(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    job_id, index, attempt = claim.key
    return *_shard(job_id, index), shards.c.attempt == attempt, shards.c.state == ShardState.RUNNING


def _names(connection: Connection, job_id: str, index: int, file: str) -> bool:
    named = or_(shards.c.file == file, shards.c.errors_file == file)
    return connection.scalar(select(shards.c.index).where(*_shard(job_id, index), named)) is not None


def _claimable(columns: Columns, queues: Sequence[str], exclude: Collection[str]) -> list[ColumnElement[bool]]:
    # `ended_at IS NULL` is what the partial index `jobs_open` holds; deleted jobs have ended.
    where = [
        columns.ended_at.is_(None),
        columns.queue.in_(queues),
        columns.pending_shards > 0,
        columns.state.in_([JobState.QUEUED, JobState.RUNNING]),
    ]
    return [*where, columns.id.not_in(exclude)] if exclude else where


# What the choice of a job looks at.
_CHOICE = [
    *(jobs.c.id, jobs.c.state, jobs.c.ended_at, jobs.c.queue, jobs.c.pending_shards, jobs.c.running_shards),
    *(jobs.c.waiting_since, jobs.c.priority, jobs.c.owner, jobs.c.model, jobs.c.adapter, jobs.c.created_at),
    (jobs.c.num_sequences - jobs.c.done_sequences).label("left"),
]


def _best_job(
    queues: Sequence[str],
    model: LoadedModel | None,
    age_limit: float | None,
    served: Sequence[str],
    exclude: Collection[str],
) -> Select[tuple[str, bool]]:
    # An owner's share counts in every queue, so it is summed up before the queues are chosen.
    share = func.sum(jobs.c.running_shards).over(partition_by=jobs.c.owner).label("share")
    unended = through(select(*_CHOICE, share).where(jobs.c.ended_at.is_(None)), jobs, "jobs_open")
    job = unended.subquery("job").c
    aged: ColumnElement[bool] = false()
    order: list[ColumnElement[Any]] = [job.priority.desc(), job.share]
    if age_limit is not None:
        aged = and_(job.running_shards == 0, now() - job.waiting_since > age_limit)
        order.insert(0, case((aged, job.waiting_since)).nulls_last())
    if model is not None:
        order.append(case((job.model == model[0], 0), else_=1))
    if served:
        turns = {owner: turn for turn, owner in enumerate(served, start=1)}
        order.append(case(turns, value=job.owner, else_=0))
    if model is not None:
        # `==` with None is SQL's IS NULL: a job without an adapter fits a model loaded without one.
        order.append(case((and_(job.model == model[0], job.adapter == model[1]), 0), else_=1))
    query = select(job.id, aged.label("aged")).where(*_claimable(job, queues, exclude))
    return query.order_by(*order, job.left, job.created_at, job.id).limit(1)


def _next_shard(job_id: str) -> ScalarSelect[int]:
    query = select(shards.c.index).where(shards.c.job_id == job_id, IS_PENDING)
    lowest = through(query.order_by(shards.c.index).limit(1), shards, "shards_pending")
    return lowest.correlate(None).scalar_subquery()  # of its own, though it stands in an update of the same table


def _claim_in(connection: Connection, job_id: str, worker_id: str, *, aged: bool) -> Claim | None:
    job = LockedJob.find(connection, job_id)
    if job is None or job.state not in (JobState.QUEUED, JobState.RUNNING) or not job.counts[ShardState.PENDING]:
        return None
    shard = job.begin(_next_shard(job_id), worker_id)
    if job.state is JobState.QUEUED:
        job.enter(JobState.RUNNING)
        job.set(started_at=func.coalesce(jobs.c.started_at, now()))
    return Claim(job_record(job.saved()), shard_record(shard), worker_id, aged=bool(aged))
