"""The first schema: store, jobs, job_labels, shards, attempts, workers."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_Id = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    store = op.create_table("store", sa.Column("id", sa.Text, nullable=False), _key("store", "id"))
    _jobs()
    _job_labels()
    _shards()
    _attempts()
    _workers()
    op.bulk_insert(store, [{"id": str(uuid.uuid4())}])


def _key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=f"pk_{table}")


def _of_job(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=f"fk_{table}_job_id", ondelete="CASCADE")


def _check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(f"ck_{table}_{name}"))


def _partial_index(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def _jobs() -> None:
    counts = ["num", "pending", "running", "done", "failed", "cancelled"]
    counters = [f"{c}_shards" for c in counts] + ["done_sequences", "done_tokens", "prompt_errors"]
    op.create_table(
        "jobs",
        sa.Column("id", _Id, nullable=False),
        *(sa.Column(c, sa.Text, nullable=False) for c in ("owner", "kind", "model")),
        *(sa.Column(c, sa.Text) for c in ("adapter", "name")),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        *(sa.Column(c, sa.Text, nullable=False) for c in ("spec_digest", "snapshot_digest")),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("sealed", sa.Boolean, nullable=False),
        *(sa.Column(c, sa.BigInteger, nullable=False) for c in ("num_prompts", "num_sequences", *counters)),
        sa.Column("identity", sa.JSON),
        *(sa.Column(c, sa.Text) for c in ("error", "notice")),
        *(sa.Column(c, sa.BigInteger, nullable=False) for c in ("revision", "manifest_revision")),
        sa.Column("created_at", sa.Double, nullable=False),
        *(sa.Column(c, sa.Double) for c in ("started_at", "ended_at")),
        sa.Column("waiting_since", sa.Double, nullable=False),
        sa.Column("deleted_at", sa.Double),
        _key("jobs", "id"),
        *(_check("jobs", c, f"{c} >= 0") for c in counters),
        _check("jobs", "ended", "(ended_at IS NULL) = (state IN ('queued', 'running', 'cancelling'))"),
        _check("jobs", "sums", "num_shards = " + " + ".join(f"{c}_shards" for c in counts[1:])),
    )
    _partial_index("jobs_open", "jobs", ["queue", "priority", "created_at"], "ended_at IS NULL")
    op.create_index("jobs_newest", "jobs", ["created_at", "id"])
    op.create_index("jobs_name", "jobs", ["name"])
    op.create_index("jobs_state_newest", "jobs", ["state", "created_at", "id"])
    op.create_index("jobs_idempotency", "jobs", ["owner", "idempotency_key"], unique=True)
    _partial_index("jobs_manifest_behind", "jobs", ["id"], "manifest_revision < revision")


def _job_labels() -> None:
    op.create_table(
        "job_labels",
        sa.Column("job_id", _Id, nullable=False),
        *(sa.Column(c, sa.Text, nullable=False) for c in ("key", "value")),
        _key("job_labels", "job_id", "key"),
        _of_job("job_labels"),
    )
    op.create_index("job_labels_value", "job_labels", ["key", "value"])


def _shards() -> None:
    op.create_table(
        "shards",
        sa.Column("job_id", _Id, nullable=False),
        *(sa.Column(c, sa.Integer, nullable=False) for c in ("index", "segment")),
        *(sa.Column(c, sa.BigInteger, nullable=False) for c in ("start", "stop", "first_prompt")),
        sa.Column("state", sa.Text, nullable=False),
        *(sa.Column(c, sa.Integer, nullable=False) for c in ("attempt", "failures")),
        sa.Column("worker_id", sa.Text),
        *(sa.Column(c, sa.BigInteger, nullable=False) for c in ("beat", "running_sequences", "running_tokens")),
        *(sa.Column(c, sa.Text) for c in ("file", "errors_file", "sha256")),
        *(sa.Column(c, sa.BigInteger, nullable=False) for c in ("bytes", "sequences", "tokens", "prompt_errors")),
        sa.Column("error", sa.Text),
        *(sa.Column(c, sa.Double) for c in ("claimed_at", "ended_at")),
        _key("shards", "job_id", "index"),
        _of_job("shards"),
        _check("shards", "state", "state IN ('pending', 'running', 'done', 'failed', 'cancelled')"),
        _check("shards", "file", "(state = 'done') = (file IS NOT NULL)"),
    )
    _partial_index("shards_pending", "shards", ["job_id", "index"], "state = 'pending'")
    _partial_index("shards_running", "shards", ["job_id", "index"], "state = 'running'")


def _attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("job_id", _Id, nullable=False),
        *(sa.Column(c, sa.Integer, nullable=False) for c in ("shard", "attempt")),
        sa.Column("worker_id", sa.Text, nullable=False),
        sa.Column("claimed_at", sa.Double, nullable=False),
        sa.Column("ended_at", sa.Double),
        *(sa.Column(c, sa.Text) for c in ("outcome", "error")),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("details", sa.JSON),
        _key("attempts", "job_id", "shard", "attempt"),
        _of_job("attempts"),
    )


def _workers() -> None:
    op.create_table(
        "workers",
        *(sa.Column(c, sa.Text, nullable=False) for c in ("id", "host")),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("process_started", sa.Double, nullable=False),
        sa.Column("boot_id", sa.Text, nullable=False),
        sa.Column("queues", sa.JSON, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        *(sa.Column(c, sa.Text) for c in ("model", "paused", "job_id")),
        sa.Column("shard", sa.Integer),
        sa.Column("tokens_per_second", sa.Double),
        sa.Column("beat", sa.BigInteger, nullable=False),
        *(sa.Column(c, sa.Double, nullable=False) for c in ("started_at", "seen_at")),
        _key("workers", "id"),
    )
