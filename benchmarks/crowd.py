"""Claims where many shards wait and far more have been made: their rate, their plans, and that they stay as cheap.

Only claim and commit, as a worker with an engine that takes no time would; files and prompts have no part in it.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, text, update

from benchmarks.lanes import Lane
from benchmarks.plans import plans
from benchmarks.wrong import Wrong
from jobs.paths import new_job_id
from jobs.records import NewJob, ShardRange, ShardResult
from jobs.states import ShardState
from jobs.store import Store
from jobs.store.schema import jobs

OWNERS = 10  # each with one open job
_TURNS = 4
_PER_JOB = 10_000  # finished shards
_ZEROS = ("failures", "beat", "running_sequences", "running_tokens", "prompt_errors")


def fill(store: Store, *, pending: int, finished: int) -> None:
    """Put `pending` shards into open jobs of several owners, and `finished` ones with their attempts into ended jobs.

    By SQL, in seconds. `Wrong` if a job's counters are not what its shards add up to.
    """
    opened = [_job(store, f"owner{n}") for n in range(OWNERS)]
    ended = [_job(store, f"owner{n % OWNERS}") for n in range(-(-finished // _PER_JOB))]
    with store.db.transaction() as connection:
        for job_id in opened:
            _grow(connection, job_id, pending // OWNERS, ShardState.PENDING)
        for job_id in ended:
            _grow(connection, job_id, min(finished, _PER_JOB), ShardState.DONE)
    if store.dialect == "postgresql":  # as its autovacuum does; SQLite has to do without statistics
        with store.db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
            connection.execute(text("CHECKPOINT"))  # so that what is measured does not wait for what was filled in
    for job_id in (*opened[:1], *ended[:1]):
        job, totals = store.job(job_id), store.totals(job_id)
        if {name: getattr(job, name) for name in totals} != totals:
            raise Wrong(f"The counters of job {job_id} are not the sums over its shards: {totals}")


def _job(store: Store, owner: str) -> str:
    """A new job with one pending shard."""
    spec = {"kind": "generate", "model": "org/model", "adapter": None, "name": None, "queue": "default", "priority": 0}
    digests = {"spec_digest": "", "snapshot_digest": ""}
    new = NewJob(id=new_job_id(), owner=owner, spec=spec, num_prompts=1, samples=1, **digests)
    return store.create_job(new, [ShardRange(0, 0, 1, 0)])[0].id


def _grow(connection: Connection, job_id: str, count: int, state: ShardState) -> None:
    """Give a job of one pending shard `count` in this state instead."""
    done = state is ShardState.DONE
    connection.execute(text("DELETE FROM shards WHERE job_id = :job"), {"job": job_id})
    numbers = "WITH RECURSIVE numbers(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i < :last) "
    values = {"job": job_id, "last": count - 1, "state": state, "one": int(done)}
    file, worker = ("'shards/shard-' || i", "'w'") if done else ("NULL", "NULL")
    connection.execute(
        text(
            'INSERT INTO shards (job_id, "index", segment, start, stop, first_prompt, state, attempt, bytes, '
            f"sequences, tokens, file, worker_id, {', '.join(_ZEROS)}) {numbers} "
            "SELECT :job, i, 0, i, i + 1, i, CAST(:state AS TEXT), :one, :one, :one, :one, "
            f"{file}, {worker}, {', '.join('0' * len(_ZEROS))} FROM numbers"
        ),
        values,
    )
    counters: dict[str, Any] = {"num_shards": count, "pending_shards": 0, f"{state}_shards": count}
    counters |= {"num_sequences": count, "num_prompts": count}
    if done:
        counters |= {"state": "succeeded", "done_sequences": count, "done_tokens": count}
        counters |= {"started_at": jobs.c.created_at, "ended_at": jobs.c.created_at}
        columns = "job_id, shard, attempt, worker_id, claimed_at, ended_at, outcome, tokens"
        attempts = f"INSERT INTO attempts ({columns}) {numbers} SELECT :job, i, 1, 'w', 0, 1, 'done', 1 FROM numbers"
        connection.execute(text(attempts), {"job": job_id, "last": count - 1})
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(counters))


def rates(
    crowded: Lane, empty: Lane, *, workers: tuple[int, ...], seconds: float, crowd: tuple[int, int]
) -> dict[str, Any]:
    """Claims with their commits: per second by so many processes at once in a crowd, and milliseconds of each alone.

    `crowd`: pending and finished shards in the tables of `crowded`. Those of `empty` hold only shards that are about to
    be claimed; the two take turns, since the machine is not as fast from one minute to the next.
    """
    pending, finished = crowd
    stores = {"crowd": Store.open(crowded.settings), "without": Store.open(empty.settings)}
    began = time.perf_counter()
    fill(stores["without"], pending=OWNERS * 1_000, finished=0)
    fill(stores["crowd"], pending=pending, finished=finished)
    report: dict[str, Any] = {"pending": pending, "finished": finished, "filled_s": time.perf_counter() - began}
    with plans(stores["crowd"]) as report["plans"]:
        _claim_and_commit(stores["crowd"], "w")
    durations: dict[str, list[float]] = {name: [] for name in stores}
    for _ in range(_TURNS):
        for name, store in stores.items():
            durations[name] += _claims(store, "w", seconds / _TURNS)
    report["median_ms"] = {name: 1e3 * statistics.median(taken) for name, taken in durations.items()}
    report["per_second"] = {count: _race(crowded, count, seconds) / seconds for count in workers}
    for store in stores.values():
        _check(store)
        store.close()
    return report


def _race(lane: Lane, count: int, seconds: float) -> int:
    """How many claims with their commits `count` processes make in `seconds`."""
    spawn = multiprocessing.get_context("spawn")
    start, queue = spawn.Barrier(count), spawn.Queue()
    claimers = [spawn.Process(target=_claimer, args=(lane, f"w{i}", seconds, start, queue)) for i in range(count)]
    for process in claimers:
        process.start()
    made: list[int] = [queue.get(timeout=seconds + 300) for _ in claimers]
    for process in claimers:
        process.join(30)
        if process.exitcode != 0:
            raise Wrong(f"A process that claimed ended with {process.exitcode}.")
    return sum(made)


def _claimer(lane: Lane, name: str, seconds: float, start: Any, queue: Any) -> None:
    store = Store.open(lane.settings)
    for _ in range(5):  # connections and statements warm
        _claim_and_commit(store, name)
    start.wait(300)
    queue.put(len(_claims(store, name, seconds)))
    store.close()


def _claims(store: Store, name: str, seconds: float) -> list[float]:
    """Seconds of each claim with its commit, one after the other for `seconds`."""
    durations, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        _claim_and_commit(store, name)
        durations.append(time.perf_counter() - began)
    return durations


def _claim_and_commit(store: Store, worker: str) -> None:
    claim = store.claim(worker, queues=["default"], model=("org/model", None), age_limit=600.0)
    if claim is None:
        raise Wrong("There was no shard to claim though many wait.")
    made = {"sha256": "0" * 64, "bytes": 1, "sequences": 1, "tokens": 1, "prompt_errors": 0}
    if not store.commit(claim, ShardResult(file=f"shards/{uuid4().hex}", errors_file=None, **made)):
        raise Wrong(f"The commit of {claim.key} was refused.")


def _check(store: Store) -> None:
    """`Wrong` if a shard was claimed twice, or a counter is not its sum."""
    for job in store.jobs(limit=OWNERS * 10):
        if not job.state.ended:
            totals = store.totals(job.id)
            if {name: getattr(job, name) for name in totals} != totals:
                raise Wrong(f"The counters of job {job.id} are not the sums over its shards: {totals}")
            if any(attempt.attempt != 1 for attempt in store.attempts(job.id)):
                raise Wrong(f"A shard of job {job.id} was claimed twice.")
