"""Which job a worker serves next. Its statements are built once for each shape: building one takes longer than asking.

`ended_at IS NULL` is what the partial index `jobs_open` holds; deleted jobs have ended.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Double, Select, Text, and_, bindparam, case, false, func, select
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from jobs.states import JobState
from jobs.store.part import through
from jobs.store.schema import jobs, now

LoadedModel = tuple[str, str | None]  # (model, adapter)
Asked = tuple[Select[Any], dict[str, Any]]  # a statement and its parameters

# What the choice of a job looks at.
_CHOICE = [
    *(jobs.c.id, jobs.c.state, jobs.c.ended_at, jobs.c.queue, jobs.c.pending_shards, jobs.c.running_shards),
    *(jobs.c.waiting_since, jobs.c.priority, jobs.c.owner, jobs.c.model, jobs.c.adapter, jobs.c.created_at),
    (jobs.c.num_sequences - jobs.c.done_sequences).label("left"),
]


def pending_job(queues: Sequence[str], exclude: Collection[str]) -> Asked:
    """Id of any job that has a shard to claim."""
    return _pending_job(bool(exclude)), {"queues": list(queues), "exclude": list(exclude)}


@cache
def _pending_job(excluding: bool) -> Select[Any]:
    return through(select(jobs.c.id).where(*_claimable(jobs.c, excluding)).limit(1), jobs, "jobs_open")


def best_job(
    queues: Sequence[str],
    model: LoadedModel | None,
    age_limit: float | None,
    served: Sequence[str],
    exclude: Collection[str],
) -> Asked:
    """Id of the job to serve next, and whether it is aged; `Claims.claim` says what is weighed."""
    shape = _best_job(model is not None, age_limit is not None, len(served), bool(exclude))
    loaded, adapter = model or (None, None)
    owners = {f"owner_{turn}": owner for turn, owner in enumerate(served, start=1)}
    asked = {"queues": list(queues), "model": loaded, "adapter": adapter, "age_limit": age_limit, **owners}
    return shape, asked | {"exclude": list(exclude)}


@cache
def _best_job(loaded: bool, aging: bool, served: int, excluding: bool) -> Select[Any]:
    # An owner's share counts in every queue, so it is summed up before the queues are chosen.
    share = func.sum(jobs.c.running_shards).over(partition_by=jobs.c.owner).label("share")
    unended = through(select(*_CHOICE, share).where(jobs.c.ended_at.is_(None)), jobs, "jobs_open")
    job = unended.subquery("job").c
    aged: ColumnElement[bool] = false()
    order: list[ColumnElement[Any]] = [job.priority.desc(), job.share]
    if aging:
        aged = and_(job.running_shards == 0, now() - job.waiting_since > bindparam("age_limit", type_=Double))
        order.insert(0, case((aged, job.waiting_since)).nulls_last())
    fits = job.model == bindparam("model", type_=Text)
    if loaded:
        order.append(case((fits, 0), else_=1))
    if served:
        turns = [(job.owner == bindparam(f"owner_{turn}", type_=Text), turn) for turn in range(1, served + 1)]
        order.append(case(*turns, else_=0))
    if loaded:
        # A job without an adapter fits a model loaded without one.
        same = job.adapter.is_not_distinct_from(bindparam("adapter", type_=Text))
        order.append(case((and_(fits, same), 0), else_=1))
    query = select(job.id, aged.label("aged")).where(*_claimable(job, excluding))
    return query.order_by(*order, job.left, job.created_at, job.id).limit(1)


def _claimable(columns: ReadOnlyColumnCollection[str, Any], excluding: bool) -> list[ColumnElement[bool]]:
    where = [
        columns.ended_at.is_(None),
        columns.queue.in_(bindparam("queues", expanding=True)),
        columns.pending_shards > 0,
        columns.state.in_([JobState.QUEUED, JobState.RUNNING]),
    ]
    return [*where, columns.id.not_in(bindparam("exclude", expanding=True))] if excluding else where
