"""Reading: a job, its shards and attempts, and what the manifest and gc need to know."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import Select, case, func, select, tuple_, update

from jobs.errors import JobNotFound
from jobs.records import Attempt, Committed, Job, Load, Shard, Span
from jobs.states import JobState, ShardState
from jobs.store.locked import recount
from jobs.store.part import IS_RUNNING, Part, through
from jobs.store.rows import (
    ATTEMPT_COLUMNS,
    SHARD_COLUMNS,
    SPAN_COLUMNS,
    attempt_record,
    job_record,
    select_jobs,
    shard_record,
)
from jobs.store.schema import attempts, jobs, now, shards

_PAGE = 1_000
_SHOWN = 5  # candidates named for an ambiguous prefix


class Queries(Part):
    def job(self, id_or_prefix: str) -> Job:
        """The job with this id, or the only one that has this name or an id that begins so. Raises JobNotFound."""
        if not id_or_prefix:  # every id begins so; a variable that was not set must not mean the only job
            raise JobNotFound("the job's id is empty; `seqproc list` shows the jobs there are")
        # Ids compare bytewise: what begins with the prefix lies between it and it with the highest character behind.
        prefixed = (jobs.c.id >= id_or_prefix, jobs.c.id < id_or_prefix + "\U0010ffff")
        with self.db.reading() as connection:
            rows = connection.execute(select_jobs().where(*prefixed).order_by(jobs.c.id).limit(_SHOWN + 1)).all()
            if not rows:
                named = select_jobs().where(jobs.c.name == id_or_prefix).order_by(jobs.c.id)
                rows = connection.execute(named.limit(_SHOWN + 1)).all()
        exact = [row for row in rows if row.id == id_or_prefix]
        if exact or len(rows) == 1:
            return job_record((exact or rows)[0])
        if not rows:
            raise JobNotFound(f"no job {id_or_prefix}; `seqproc list` shows the jobs there are")
        shown = ", ".join(row.id for row in rows[:_SHOWN]) + (", …" if len(rows) > _SHOWN else "")
        raise JobNotFound(f"{id_or_prefix} could be any of {shown}; give one of these ids")

    def shard(self, job_id: str, index: int) -> Shard:
        """One shard. Raises JobNotFound."""
        with self.db.reading() as connection:
            row = connection.execute(_shards_of(job_id).where(shards.c.index == index)).one_or_none()
        if row is None:
            raise JobNotFound(f"job {job_id} has no shard {index}")
        return shard_record(row)

    def shards(
        self, job_id: str, *, states: Collection[ShardState] | None = None, after: int = -1, limit: int | None = None
    ) -> list[Shard]:
        """A job's shards in order, as of one moment: all at once, or the first `limit` of those `after` an index."""
        query = _shards_of(job_id).where(shards.c.index > after).limit(limit)
        if states is not None:
            query = query.where(shards.c.state.in_(states))
        with self.db.reading() as connection:
            return [shard_record(row) for row in connection.execute(query)]

    def iter_shards(self, job_id: str, state: ShardState, *, after: int = -1) -> Iterator[Shard]:
        """A job's shards in one state, in order and in bounded memory; each page is of its own moment."""
        while page := self.shards(job_id, states=[state], after=after, limit=_PAGE):
            yield from page
            after = page[-1].index

    def done_after(self, job_id: str, order: int, *, limit: int) -> list[Shard]:
        """The first done shards after the `order`-th that was done, in the order in which they were.

        That order grows at its end alone: a shard that is done later comes later, and what is done never changes.
        """
        done = (shards.c.job_id == job_id, shards.c.done_order.is_not(None), shards.c.done_order > order)
        query = select(*SHARD_COLUMNS).where(*done).order_by(shards.c.done_order).limit(limit)
        with self.db.reading() as connection:
            return [shard_record(row) for row in connection.execute(through(query, shards, "shards_done_order"))]

    def shard_of(self, job_id: str, prompt_index: int) -> Shard:
        """The shard that holds this prompt. Raises JobNotFound."""
        held = (shards.c.first_prompt <= prompt_index, shards.c.index <= prompt_index)  # a shard holds a prompt or more
        query = _shards_of(job_id).where(*held).order_by(None).order_by(shards.c.index.desc()).limit(1)
        with self.db.reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is None or prompt_index >= row.first_prompt + row.stop - row.start:
            raise JobNotFound(f"job {job_id} has no prompt {prompt_index}")
        return shard_record(row)

    def committed(self, job_id: str) -> list[Committed]:
        """The files of a job's done shards, in order: less to read than the shards themselves, which may be many."""
        query = select(shards.c.index, shards.c.file, shards.c.tokens)
        query = query.where(shards.c.job_id == job_id, shards.c.file.is_not(None)).order_by(shards.c.index)
        with self.db.reading() as connection:
            return [Committed(*row) for row in connection.execute(query)]

    def job_workers(self, job_id: str) -> list[str]:
        """Ids of all workers that ever claimed a shard of the job."""
        query = (
            select(attempts.c.worker_id).where(attempts.c.job_id == job_id).distinct().order_by(attempts.c.worker_id)
        )
        with self.db.reading() as connection:
            return list(connection.scalars(query))

    def attempts(self, job_id: str, *, after: tuple[int, int] | None = None, limit: int | None = None) -> list[Attempt]:
        """Every execution of every shard, by shard and attempt: all, or `limit` of those `after` such a pair."""
        order = (attempts.c.shard, attempts.c.attempt)
        query = select(*ATTEMPT_COLUMNS).where(attempts.c.job_id == job_id).order_by(*order).limit(limit)
        if after is not None:
            query = query.where(tuple_(*order) > after)
        with self.db.reading() as connection:
            return [attempt_record(row) for row in connection.execute(query)]

    def totals(self, job_id: str) -> dict[str, int]:
        """The job's counters by their names in Job, added up anew from its shards."""
        with self.db.reading() as connection:
            return recount(connection, job_id)

    def running_progress(self, job_id: str) -> tuple[int, int]:
        """(sequences, tokens) that running attempts have generated and not committed."""
        sums = (func.coalesce(func.sum(shards.c[name]), 0) for name in ("running_sequences", "running_tokens"))
        query = select(*sums).where(shards.c.job_id == job_id, IS_RUNNING)
        with self.db.reading() as connection:
            sequences, tokens = connection.execute(through(query, shards, "shards_running")).one()
        return int(sequences), int(tokens)

    def load(self) -> list[Load]:
        """All that has not ended, by queue and state. What has ended is not looked at, however much it is."""
        counts = [func.count().label("jobs")]
        counts += [func.sum(jobs.c[f"{state}_shards"]).label(f"{state}_shards") for state in ShardState]
        longest = func.min(case((jobs.c.pending_shards > 0, jobs.c.waiting_since)))
        waited = func.coalesce(now() - longest, 0.0).label("waited")
        query = select(jobs.c.queue, jobs.c.state, *counts, waited).where(jobs.c.ended_at.is_(None))
        query = through(query.group_by(jobs.c.queue, jobs.c.state), jobs, "jobs_open")
        with self.db.reading() as connection:
            rows = connection.execute(query.order_by(jobs.c.queue, jobs.c.state)).all()
        return [
            Load(
                queue=row.queue,
                state=JobState(row.state),
                waited=max(0.0, row.waited),
                **{count.name: int(row._mapping[count.name]) for count in counts},
            )
            for row in rows
        ]

    def spans(self, job_id: str, *, limit: int) -> list[Span]:
        """When attempts of the job ran: those of the last shards, at most so many."""
        newest = (attempts.c.shard.desc(), attempts.c.attempt.desc())
        query = select(*SPAN_COLUMNS).where(attempts.c.job_id == job_id).order_by(*newest).limit(limit)
        with self.db.reading() as connection:
            return [Span(**row._mapping) for row in connection.execute(query)]

    def shards_with_errors(self, job_id: str, *, after: int = -1, limit: int) -> list[Shard]:
        """The first shards in which prompts failed, of those that hold a prompt behind `after`."""
        beyond = shards.c.first_prompt + shards.c.stop - shards.c.start > after + 1
        query = _shards_of(job_id).where(shards.c.prompt_errors > 0, beyond).limit(limit)
        with self.db.reading() as connection:
            return [shard_record(row) for row in connection.execute(query)]

    def job_ids(self) -> set[str]:
        """The ids of all rows, deleted jobs included: whose folders are not orphans."""
        with self.db.reading() as connection:
            return set(connection.scalars(select(jobs.c.id)))

    def jobs_with_old_manifest(self) -> list[str]:
        """Ended jobs that have changed since their manifest was written."""
        behind = (jobs.c.manifest_revision < jobs.c.revision, jobs.c.ended_at.is_not(None), jobs.c.deleted_at.is_(None))
        with self.db.reading() as connection:
            return list(connection.scalars(select(jobs.c.id).where(*behind).order_by(jobs.c.id)))

    def manifest_written(self, job_id: str, revision: int) -> bool:
        """The manifest on disk shows this revision. False if the job has changed meanwhile: write it again."""
        current = (jobs.c.id == job_id, jobs.c.revision == revision)
        with self.db.transaction() as connection:
            return connection.execute(update(jobs).where(*current).values(manifest_revision=revision)).rowcount == 1


def _shards_of(job_id: str) -> Select[Any]:
    return select(*SHARD_COLUMNS).where(shards.c.job_id == job_id).order_by(shards.c.index)
