"""Listing jobs newest first and counting them, at a cost that does not grow with how many there are.

An index holds the jobs of each owner, model, queue and label in each state newest first, another one all of a state.
A list goes along one such path, the shortest of those asked for, and asks all else of the `_WINDOW` newest jobs on it.
If these do not fill a page, the page says how far back it looked, and the next goes on from there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Select,
    Table,
    desc,
    func,
    or_,
    select,
    true,
    tuple_,
    union_all,
)

from jobs.labels import Label
from jobs.records import Job, JobPage, Moment, StateCounts
from jobs.states import JobState
from jobs.store.part import Part, through
from jobs.store.rows import JOB_COLUMNS, job_record
from jobs.store.schema import job_labels, jobs

_WINDOW = 1_000  # jobs of a state that are looked at, where an index alone cannot tell which are asked for
_COUNTED = 10_001  # jobs of a state: enough to say that there are more than 10,000

_NEWEST_FIRST: tuple[Any, Any] = (desc("created_at"), desc("id"))
_Conditions = Sequence[ColumnElement[bool]]


class Listing(Part):
    def jobs(self, *, limit: int = 50, before: Moment | None = None, **filters: Any) -> list[Job]:
        """Jobs that satisfy every filter given, newest first, however far back they stand; filters as of `jobs_page`.

        The next ones begin `before` the last one's (created_at, id).
        """
        found: list[Job] = []
        while len(found) < limit:
            page = self.jobs_page(limit=limit - len(found), before=before, **filters)
            found += page.jobs
            before = page.next
            if before is None:
                break
        return found

    def jobs_page(
        self,
        *,
        states: Collection[JobState] | None = None,
        owner: str | None = None,
        label: Label | None = None,
        model: str | None = None,
        queue: str | None = None,
        text: str | None = None,
        limit: int = 50,
        before: Moment | None = None,
    ) -> JobPage:
        """Jobs that satisfy every filter given, newest first, as many as a bounded look finds.

        `label` is (key, value), or (key, None) for any value; `text` stands somewhere in id, name, model or adapter.
        """
        wanted = [state for state in JobState if states is None or state in states]
        if not wanted:
            return JobPage([], None)
        with self.db.reading() as connection:
            search = _Search(connection, wanted, before, owner=owner, label=label, model=model, queue=queue, text=text)
            newest = _each(search.branches, limit + 1).order_by(*_NEWEST_FIRST).limit(limit + 1).subquery()
            query = select(*JOB_COLUMNS).join_from(newest, jobs, jobs.c.id == newest.c.id)
            query = query.order_by(newest.c.created_at.desc(), newest.c.id.desc())
            found = [job_record(row) for row in connection.execute(query)]
        if len(found) > limit:
            return JobPage(found[:limit], (found[limit - 1].created_at, found[limit - 1].id))
        return JobPage(found, search.back_to)

    def job_counts(
        self,
        *,
        owner: str | None = None,
        label: Label | None = None,
        model: str | None = None,
        queue: str | None = None,
        text: str | None = None,
    ) -> StateCounts:
        """How many jobs satisfy every filter given, by state: to 10,001, and as far as a bounded look finds them."""
        with self.db.reading() as connection:
            states = list(JobState)
            search = _Search(connection, states, None, owner=owner, label=label, model=model, queue=queue, text=text)
            counts = dict(zip(states, _lengths(connection, search.branches, _COUNTED), strict=True))
        more = [state for state in states if search.back_to or counts[state] == _COUNTED]
        return StateCounts(counts, at_least=frozenset(more))


class _Search:
    """Which way to look for jobs, and how far. What is found is what its `branches` select, each by an index."""

    def __init__(
        self,
        connection: Connection,
        states: Sequence[JobState],
        before: Moment | None,
        *,
        label: Label | None,
        text: str | None,
        **columns: str | None,
    ) -> None:
        paths = [_with(name, value) for name, value in columns.items() if value is not None]
        paths += [] if label is None else [_labelled(*label)]
        path = _shortest(connection, paths or [_ALL], states)
        rest = [other.asked for other in paths if other is not path]
        rest += [] if text is None else [_contains(text)]
        where = [] if before is None else [path.moment < before]
        self.back_to: Moment | None = None  # where the look ended though there may be more
        if rest:
            last = _each(path.branches(states, where), 1, offset=_WINDOW - 1).order_by(*_NEWEST_FIRST).limit(1)
            row = connection.execute(last).one_or_none()
            if row is not None:
                self.back_to = (row.created_at, row.id)
                where = [*where, path.moment >= self.back_to]
        self.branches = path.branches(states, where, rest)


@dataclass(frozen=True)
class _Path:
    """The order in which an index holds jobs: in each state newest first."""

    index: str
    common: ColumnElement[bool]  # to all jobs on it
    asked: ColumnElement[bool]  # the same of a job on another path, in words that no index knows
    table: Table = jobs

    @property
    def id(self) -> ColumnElement[str]:
        return jobs.c.id if self.table is jobs else self.table.c.job_id

    @property
    def moment(self) -> ColumnElement[Any]:
        return tuple_(self.table.c.created_at, self.id)

    def branches(
        self, states: Sequence[JobState], where: _Conditions, rest: _Conditions = ()
    ) -> list[Select[tuple[float, str, str]]]:
        """The jobs of each state by itself, in order: an index has those of one in order, and those of several not."""
        columns = self.table.c
        found = select(columns.created_at, self.id.label("id"), columns.state).where(self.common, *where, *rest)
        found = found.order_by(columns.created_at.desc(), self.id.desc())
        if rest and self.table is not jobs:
            found = found.join_from(self.table, jobs, jobs.c.id == self.id)
        return [through(found.where(columns.state == state), self.table, self.index) for state in states]


_ALL = _Path("jobs_state_newest", jobs.c.deleted_at.is_(None), asked=true())


def _with(column: str, value: str) -> _Path:
    """Jobs with this value."""
    known = (jobs.c[column] == value) & jobs.c.deleted_at.is_(None)
    # Without `|| ''` PostgreSQL may look up all jobs with the value, to see which of a few others are among them.
    return _Path(f"jobs_{column}_newest", known, asked=jobs.c[column].concat("") == value)


def _labelled(key: str, value: str | None) -> _Path:
    """Jobs with this label, or with any value of it."""
    labels = job_labels.c
    of_job = select(labels.value).where(labels.job_id == jobs.c.id, labels.key == key).scalar_subquery()
    if value is None:
        return _Path("job_labels_key_newest", labels.key == key, asked=of_job.is_not(None), table=job_labels)
    known = (labels.key == key) & (labels.value == value)
    return _Path("job_labels_value_newest", known, asked=of_job == value, table=job_labels)


def _shortest(connection: Connection, paths: Sequence[_Path], states: Sequence[JobState]) -> _Path:
    """The path with the fewest jobs; any, if all are longer than what is looked at."""
    if len(paths) == 1:
        return paths[0]
    lengths = _lengths(connection, [_each(path.branches(states, []), _WINDOW) for path in paths], _WINDOW)
    return paths[lengths.index(min(lengths))]


def _lengths(connection: Connection, queries: Sequence[Select[Any] | CompoundSelect[Any]], limit: int) -> list[int]:
    """How many rows each of the queries has, counted as far as the limit."""
    limited = (query.limit(limit).subquery() for query in queries)
    counts = (select(func.count()).select_from(rows).scalar_subquery() for rows in limited)
    return list(connection.execute(select(*counts)).one())


def _each(branches: Sequence[Select[Any]], limit: int, offset: int = 0) -> CompoundSelect[Any]:
    """The newest of each branch, at most so many. A limit on each, and its order: so a database follows the index."""
    return union_all(*(select(branch.limit(limit).offset(offset).subquery()) for branch in branches))


def _contains(text: str) -> ColumnElement[bool]:
    columns = (jobs.c.id, jobs.c.name, jobs.c.model, jobs.c.adapter)
    return or_(*(column.icontains(text, autoescape=True) for column in columns))
