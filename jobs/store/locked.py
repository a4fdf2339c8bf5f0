"""A job's row, locked. Whoever changes the state of a job or of its shards does it through here, and only so.

The job's row is locked first and its shards after it, always; so what was read stays true until the transaction ends,
no two transactions wait for each other, and the counters can be kept by adding up what each statement moved. An edge
that is not in `jobs.states` cannot be walked.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any, Self

from sqlalchemy import ClauseElement, Connection, Row, Update, bindparam, func, insert, select, update

from jobs.errors import JobNotFound
from jobs.records import ShardResult
from jobs.states import JOB_EDGES, SHARD_EDGES, JobState, ShardState
from jobs.store.part import NOW, new, written
from jobs.store.schema import attempts, job_labels, jobs, shards, webhooks

# Clears what belongs to a running attempt.
AT_REST: dict[str, Any] = {"worker_id": None, "running_sequences": 0, "running_tokens": 0}

_LOCK = (
    select(*(column for column in jobs.c if column is not jobs.c.spec))
    .where(jobs.c.id == bindparam("job"), jobs.c.deleted_at.is_(None))
    .with_for_update()
)
FENCE = (
    shards.c.job_id == bindparam("job"),
    shards.c.index == bindparam("shard"),
    shards.c.attempt == bindparam("of_attempt"),  # a parameter named like a column would be written to it
    shards.c.state == ShardState.RUNNING,
)
_RUNNING = select(shards).where(*FENCE)

LABELS = (  # lists find a job by its labels in its state
    update(job_labels)
    .where(job_labels.c.job_id == bindparam("job"), job_labels.c.state != bindparam("new"))
    .values(state=bindparam("new"))
)


class LockedJob:
    """The row of one job, held until the transaction ends. Changes reach the row by `save()`."""

    def __init__(self, connection: Connection, row: Row[Any]) -> None:
        self.connection = connection
        self.row = row
        self.id: str = row.id
        self.state = JobState(row.state)
        self.sealed: bool = row.sealed
        self.counts = Counter({state: getattr(row, f"{state}_shards") for state in ShardState})
        self._changes: dict[str, Any] = {}
        self._ends = False  # in this transaction

    @classmethod
    def find(cls, connection: Connection, job_id: str) -> Self | None:
        """Lock a job's row; None if there is no such job, or it was deleted."""
        row = connection.execute(_LOCK, {"job": job_id}).one_or_none()
        return None if row is None else cls(connection, row)

    @classmethod
    def take(cls, connection: Connection, job_id: str) -> Self:
        """As `find`; raises JobNotFound."""
        job = cls.find(connection, job_id)
        if job is None:
            raise JobNotFound(f"no job {job_id}; `seqproc list` shows the jobs there are")
        return job

    def set(self, **values: Any) -> None:
        """Columns of the job to write."""
        self._changes |= values

    def enter(self, state: JobState) -> None:
        """Walk one edge of the job's states."""
        if (self.state, state) not in JOB_EDGES:
            raise AssertionError(f"job {self.id}: there is no edge {self.state} → {state}")
        self.state = state
        self._ends = state.ended

    def move(self, source: ShardState, target: ShardState, *, index: int | None = None, **values: Any) -> int:
        """Walk one edge with every shard in `source`, or that one; how many those were. `values`: columns to write."""
        if (source, target) not in SHARD_EDGES:
            raise AssertionError(f"job {self.id}: there is no edge {source} → {target} for a shard")
        statement = _moving(source, target, index is not None, tuple(values))
        moved = self.connection.execute(statement, {"job": self.id, "shard": index, **new(values)}).rowcount
        self.counts[source] -= moved
        self.counts[target] += moved
        return moved

    def running(self, index: int, attempt: int) -> Row[Any] | None:
        """The shard's row if the fence (job, shard, attempt, running) holds; it will, until the transaction ends."""
        key = {"job": self.id, "shard": index, "of_attempt": attempt}
        return self.connection.execute(_RUNNING, key).one_or_none()

    def end_attempt(self, index: int, attempt: int, outcome: str, *, tokens: int, **values: Any) -> None:
        """Close the record of one attempt; `tokens` of an attempt that was thrown away are what it had generated."""
        values |= {"outcome": outcome, "tokens": tokens}
        key = {"job": self.id, "of_shard": index, "of_attempt": attempt}
        self.connection.execute(_ending(tuple(values)), key | new(values))

    def finish(self, index: int, attempt: int, result: ShardResult) -> None:
        """A running shard is done: its files, its totals, its attempt."""
        totals = {name: getattr(result, name) for name in ("bytes", "sequences", "tokens", "prompt_errors")}
        files = {name: getattr(result, name) for name in ("file", "errors_file", "sha256")}
        worker = {"running_sequences": 0, "running_tokens": 0, "error": None}  # who made it stays on record
        order = {"done_order": self.counts[ShardState.DONE] + 1}  # what is done stays done, so no number comes twice
        self.move(ShardState.RUNNING, ShardState.DONE, index=index, **totals, **files, **worker, **order)
        self.end_attempt(index, attempt, "done", tokens=result.tokens, details=result.details)
        self.set(
            done_sequences=self.row.done_sequences + result.sequences,
            done_tokens=self.row.done_tokens + result.tokens,
            prompt_errors=self.row.prompt_errors + result.prompt_errors,
            waiting_since=NOW,
        )

    def fall_back(self, shard: Row[Any], outcome: str, error: str, *, failures: int = 0, limit: int = 0) -> ShardState:
        """A running shard ends without a result: pending again, or failed at the limit, or cancelled with its job.

        `failures` is what this attempt adds to the shard's own; none added never fails it, and leaves the job's place
        in line: a worker that can run nothing of it has not served it.
        """
        index: int = shard._mapping["index"]  # a Row is a tuple, and `.index` its method
        total = shard.failures + failures
        target = ShardState.PENDING
        if self.state is JobState.CANCELLING:
            target = ShardState.CANCELLED
        elif failures and total >= limit:
            target = ShardState.FAILED
        kept = {"failures": total, "error": error if failures else shard.error}
        self.move(ShardState.RUNNING, target, index=index, **kept, **AT_REST)
        self.end_attempt(index, shard.attempt, outcome, error=error, tokens=shard.running_tokens)
        if failures:
            self.set(waiting_since=NOW)
        self.settle()
        return target

    def settle(self) -> None:
        """End the job if its last shard has ended and no more can come."""
        counts = self.counts
        if self.state.ended or not self.sealed or counts[ShardState.PENDING] or counts[ShardState.RUNNING]:
            return
        if counts[ShardState.FAILED]:
            self.enter(JobState.FAILED)
            self.set(error=self._changes.get("error") or self.row.error or self._first_failure())
        elif counts[ShardState.CANCELLED] or not self.row.num_shards:
            self.enter(JobState.CANCELLED)
        else:
            self.enter(JobState.SUCCEEDED)
            self.set(notice=None)  # whatever it was about is over
        self.set(ended_at=NOW)

    def _first_failure(self) -> str:
        failed = (shards.c.job_id == self.id, shards.c.state == ShardState.FAILED)
        first = self.connection.execute(
            select(shards.c.index, shards.c.error).where(*failed).order_by(shards.c.index).limit(1)
        ).one()
        others = self.counts[ShardState.FAILED] - 1
        more = f" (and {others:,} more failed shard{'s' if others > 1 else ''})" if others else ""
        return f"shard {first[0]}: {first.error}{more}"

    def save(self) -> None:
        """Write the row: state, counters, changes, and a higher revision."""
        counters = {f"{state}_shards": self.counts[state] for state in ShardState}
        values = {"state": self.state, "sealed": self.sealed, **counters, **self._changes}
        told = {name: value for name, value in values.items() if not isinstance(value, ClauseElement)}
        reckoned = tuple((name, value) for name, value in values.items() if name not in told)
        self.connection.execute(_saving(tuple(told), reckoned), {"job": self.id, **new(told)})
        if self.state != self.row.state:
            self.connection.execute(LABELS, {"job": self.id, "new": self.state})
        if self._ends:
            self._tell_of_the_end()

    def _tell_of_the_end(self) -> None:
        """Whoever asked to be told will be, in the end: the row is written with the end itself."""
        spec = self.connection.scalar(select(jobs.c.spec).where(jobs.c.id == self.id))
        if isinstance(spec, dict) and (url := spec.get("webhook")):
            event = {"job_id": self.id, "revision": self.row.revision + 1, "url": str(url)}
            self.connection.execute(insert(webhooks).values(**event, next_try_at=NOW, created_at=NOW))


def recount(connection: Connection, job_id: str) -> dict[str, int]:
    """A job's counters, added up from its shards: what the row must say."""
    done = shards.c.state == ShardState.DONE
    columns = [func.count().filter(shards.c.state == state).label(f"{state}_shards") for state in ShardState]
    sums = {"done_sequences": "sequences", "done_tokens": "tokens", "prompt_errors": "prompt_errors"}
    columns += [func.coalesce(func.sum(shards.c[column]).filter(done), 0).label(n) for n, column in sums.items()]
    row = connection.execute(select(func.count().label("num_shards"), *columns).where(shards.c.job_id == job_id)).one()
    return {name: int(value) for name, value in row._mapping.items()}


@lru_cache(maxsize=64)
def _moving(source: ShardState, target: ShardState, one: bool, names: tuple[str, ...]) -> Update:
    where = [shards.c.job_id == bindparam("job"), shards.c.state == source]
    where += [shards.c.index == bindparam("shard")] if one else []
    return update(shards).where(*where).values(state=target, ended_at=NOW if target.ended else None, **written(names))


@lru_cache(maxsize=64)
def _ending(names: tuple[str, ...]) -> Update:
    key = (attempts.c.job_id == bindparam("job"), attempts.c.shard == bindparam("of_shard"))
    this = update(attempts).where(*key, attempts.c.attempt == bindparam("of_attempt"))
    return this.values(ended_at=NOW, **written(names))


@lru_cache(maxsize=64)
def _saving(names: tuple[str, ...], reckoned: tuple[tuple[str, Any], ...]) -> Update:
    values = {**written(names), **dict(reckoned), "revision": jobs.c.revision + 1}
    return update(jobs).where(jobs.c.id == bindparam("job")).values(values)
