"""Tables full of jobs that have ended, as a group of people leaves them behind in some years.

By SQL, in seconds. Each job is a function of its place `i`, 0 the newest; so a benchmark knows what it must find.
"""

from __future__ import annotations

from sqlalchemy import text

from jobs.spec import JobSpec
from jobs.store import Store

OWNERS = 200  # half of all jobs are of owner0
MODELS = 50  # a third of all jobs are of model-0
RUN = 100  # jobs with the same label `run`
PROJECTS = 20  # a third of all jobs bear a label `project`
RARE = 100  # the oldest jobs: only they are in the queue `rare`
OPEN = 200  # the newest jobs: a tenth of them running, the others queued

_ZEROS = ("running_shards", "failed_shards", "cancelled_shards", "prompt_errors", "priority", "revision")
_JOBS = f"""
    INSERT INTO jobs (
        id, owner, kind, model, adapter, name, queue, state, spec, spec_digest, snapshot_digest, sealed,
        num_prompts, num_sequences, num_shards, pending_shards, done_shards, done_sequences, done_tokens,
        created_at, started_at, ended_at, waiting_since, manifest_revision, {", ".join(_ZEROS)}
    )
    WITH RECURSIVE places(i) AS (
        SELECT CAST(:count - 1 AS BIGINT) UNION ALL SELECT i - 1 FROM places WHERE i > 0
    ), drawn AS (
        SELECT i, i * 7919 % 10007 AS draw, i < {OPEN} AS is_open, :now - i * 60.0 AS at FROM places
    )
    SELECT {{id}},
        CASE WHEN i % 2 = 0 THEN 'owner0' ELSE 'owner' || (draw % {OWNERS}) END,
        'generate',
        CASE WHEN i % 3 = 0 THEN 'org/model-0' ELSE 'org/model-' || (draw / 13 % {MODELS}) END,
        CASE WHEN i % 10 = 0 THEN 'org/adapter-' || (draw % 7) END,
        'sweep ' || (i / 1000) || ' step ' || (i % 1000),
        CASE WHEN i >= :count - {RARE} THEN 'rare' WHEN i % 10 = 6 THEN 'gpu' ELSE 'default' END,
        CASE WHEN is_open THEN CASE WHEN i % 10 = 0 THEN 'running' ELSE 'queued' END
            WHEN draw / 7 % 20 = 0 THEN 'failed' WHEN draw / 7 % 20 = 1 THEN 'cancelled' ELSE 'succeeded' END,
        {{spec}}, '', '', {{true}},
        64, 512, 4, CASE WHEN is_open THEN 4 ELSE 0 END, CASE WHEN is_open THEN 0 ELSE 4 END,
        CASE WHEN is_open THEN 0 ELSE 512 END, CASE WHEN is_open THEN 0 ELSE 51200 END,
        at, CASE WHEN NOT is_open OR i % 10 = 0 THEN at + 1 END, CASE WHEN NOT is_open THEN at + 31 END, at, 0,
        {", ".join("0" * len(_ZEROS))}
    FROM drawn ORDER BY i DESC
"""
_PLACE = "CAST((:now - created_at) / 60 AS BIGINT)"
_LABELS = f"""
    INSERT INTO job_labels (job_id, key, value, state, created_at)
    SELECT id, 'run', 'run' || ({_PLACE} / {RUN}), state, created_at FROM jobs
    UNION ALL
    SELECT id, 'project', 'project' || ({_PLACE} % {PROJECTS}), state, created_at FROM jobs
    WHERE {_PLACE} % 3 = 0
"""


def fill(store: Store, count: int, *, now: float) -> None:
    """Put `count` jobs into empty tables, one a minute up to `now`. None of them has shards."""
    sqlite = store.dialect == "sqlite"
    number = "i * 7919000000003 % 281474976710656"  # an odd factor: no two jobs get the same
    spec = (
        f"""'{{"labels": {{"run": "run' || (i / {RUN}) || '"' """
        f"""|| CASE WHEN i % 3 = 0 THEN ', "project": "project' || (i % {PROJECTS}) || '"' ELSE '' END || :spec"""
    )
    dialect = {
        "id": f"printf('%012x', {number})" if sqlite else f"lpad(to_hex({number}), 12, '0')",
        "spec": spec if sqlite else f"CAST({spec} AS JSON)",
        "true": "1" if sqlite else "true",
    }
    rest = JobSpec(model="org/model", seed=1).resolve().model_dump_json(exclude={"labels"})
    with store.db.transaction() as connection:
        values = {"count": count, "now": now}
        connection.execute(text(_JOBS.format(**dialect)), values | {"spec": "}, " + rest[1:]})
        connection.execute(text(_LABELS), {"now": now})
    if not sqlite:  # as its autovacuum does; SQLite has to do without statistics
        with store.db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
