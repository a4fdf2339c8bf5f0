"""A claim reads through the partial indexes, however many shards and jobs stand beside the one it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, text, update

from jobs.states import JobState
from jobs.store import Store
from jobs.store.schema import jobs
from tests.contract.helpers import a_job, claim, result, submit

PENDING = 100_000
FINISHED = 5_000


@contextmanager
def plans(store: Store) -> Iterator[list[str]]:
    """The plan of every SELECT and UPDATE that the block runs, asked for with the block's own parameters."""
    explain = "EXPLAIN QUERY PLAN" if store.dialect == "sqlite" else "EXPLAIN"
    seen: list[str] = []

    def look(_connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE")) and "FROM store" not in statement:
            asked = cursor.connection.cursor()
            asked.execute(f"{explain} {statement}", parameters)
            steps = "\n".join(str(row[-1]) for row in asked.fetchall())
            seen.append(f"{statement}\n{steps}")

    event.listen(store.db.engine, "before_cursor_execute", look)
    yield seen
    event.remove(store.db.engine, "before_cursor_execute", look)


def grow(connection: Connection, job_id: str, shards: int) -> None:
    """Give a job of one shard many more, without sending each of them to the database."""
    zeros = [
        "attempt",
        "failures",
        "beat",
        "running_sequences",
        "running_tokens",
        "bytes",
        "sequences",
        "tokens",
        "prompt_errors",
    ]
    connection.execute(
        text(
            f'INSERT INTO shards (job_id, "index", segment, start, stop, first_prompt, state, {", ".join(zeros)}) '
            "WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < :last) "
            f"SELECT :job, i, 0, i, i + 1, i, 'pending', {', '.join('0' * len(zeros))} FROM numbers"
        ),
        {"job": job_id, "last": shards - 1},
    )
    counters = {"num_shards": shards, "pending_shards": shards}
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(counters))


@pytest.fixture
def crowded(store: Store, dialect: str) -> Store:
    """One job of 100,000 pending shards among finished ones."""
    job = submit(store, 1)
    finished = [
        {"id": f"f{i:06d}", "owner": "ada", "kind": "generate", "model": "m", "queue": "default", "priority": 0}
        | {"spec": a_job().spec, "spec_digest": "", "snapshot_digest": "", "state": "succeeded", "sealed": True}
        | {"num_prompts": 0, "num_sequences": 0, "created_at": 0.0, "ended_at": 1.0, "waiting_since": 0.0}
        for i in range(FINISHED)
    ]
    with store.db.transaction() as connection:
        grow(connection, job.id, PENDING)
        connection.execute(insert(jobs), finished)
        if dialect == "postgresql":  # as its autovacuum does; SQLite has to do without statistics
            connection.execute(text("ANALYZE"))
    return store


def test_what_workers_ask_all_the_time_scans_nothing(crowded: Store) -> None:
    with plans(crowded) as seen:
        mine = claim(crowded, model=("org/model", None))
        assert crowded.pending_exists(["default"])
        assert crowded.unfinished_exists(["default"])
        assert crowded.running_beats()
        crowded.running_progress(mine.job.id)
        crowded.beat(mine, sequences=1, tokens=1)
        crowded.commit(mine, result())
        crowded.load()
        crowded.past_ttl()
        crowded.jobs(limit=10)
        crowded.jobs(owner="ada", states=[JobState.SUCCEEDED], limit=10)
        crowded.jobs(label=("made", "here"), limit=10)
        crowded.job(mine.job.id[:6])
    assert mine.shard.index == 0
    assert len(seen) > 10
    unindexed = re.compile(r"Seq Scan on (jobs|shards)|^SCAN (jobs|shards)( AS \w+)?$", re.MULTILINE)
    for plan in seen:
        assert not unindexed.search(plan), plan
    [best_job] = [plan for plan in seen if "PARTITION BY" in plan]
    assert " jobs_open" in best_job
    [load] = [plan for plan in seen if "AS waited" in plan]
    assert " jobs_open" in load
    [next_shard] = [plan for plan in seen if plan.startswith("UPDATE") and "SELECT" in plan]
    assert "shards_pending" in next_shard, next_shard
    assert "sort" not in next_shard.lower(), next_shard
    assert "B-TREE" not in next_shard, next_shard
