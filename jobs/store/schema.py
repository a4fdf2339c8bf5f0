"""The tables. A job is its row; everything that changes about it changes here, in one transaction at a time.

Invariants, held by the transactions of this package and by checks where SQL can say them:
  · `jobs.*_shards`, `done_sequences`, `done_tokens`, `prompt_errors` equal the sums over `shards`;
  · `jobs.ended_at` is null exactly while the job has not ended, so the partial index `jobs_open` holds open jobs only;
  · `job_labels.state` is the state of its job;
  · `shards.attempt` only rises; a shard has a file exactly while it is done;
  · the done shards of a job are numbered 1, 2, … by `done_order`, as they were done.
Times are seconds since the epoch by the database's own clock (`now()`), never by a client's.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

REVISION = "0005"  # the Alembic revision that these tables are; revisions are numbered, so newer compares greater


class Words(TypeDecorator[str]):
    """Text from people and models, as any database takes it: no NUL, no lone surrogate."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return value.encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")


class now(FunctionElement[float]):
    """Seconds since the epoch by the database's clock, to a millisecond or better."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **kw: Any) -> str:
    # clock_timestamp: now() would be when the transaction began, before it waited for the job's lock.
    return "extract(epoch from clock_timestamp())::double precision"


# Ids compare bytewise everywhere, so that a prefix is a range of the primary key.
Id = Text().with_variant(Text(collation="C"), "postgresql")
Json = JSON(none_as_null=True)


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, CheckConstraint(f"{name} >= 0", name=name), nullable=False, default=0)


def _newest_first(*columns: str) -> Index:
    """For lists: the jobs with the same values in these columns, the last of which is their state, in order.

    `deleted_at` once more as a column: SQLite would look into the table for it, though the index says it.
    """
    shown = text("deleted_at IS NULL")
    name = f"jobs_{columns[0]}_newest"
    return Index(name, *columns, "created_at", "id", "deleted_at", sqlite_where=shown, postgresql_where=shown)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

store = Table("store", metadata, Column("id", Text, primary_key=True))

jobs = Table(
    "jobs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("owner", Words, nullable=False),
    Column("kind", Text, nullable=False),
    Column("model", Words, nullable=False),
    Column("adapter", Words),
    Column("name", Words),
    Column("queue", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("spec", Json, nullable=False),
    Column("spec_digest", Text, nullable=False),
    Column("snapshot_digest", Text, nullable=False),
    Column("idempotency_key", Words),
    Column("state", Text, nullable=False),
    Column("sealed", Boolean, nullable=False),
    Column("num_prompts", BigInteger, nullable=False),
    Column("num_sequences", BigInteger, nullable=False),
    _count("num_shards"),
    _count("pending_shards"),
    _count("running_shards"),
    _count("done_shards"),
    _count("failed_shards"),
    _count("cancelled_shards"),
    _count("done_sequences"),
    _count("done_tokens"),
    _count("prompt_errors"),
    Column("identity", Json),
    Column("error", Words),
    Column("notice", Words),
    Column("revision", BigInteger, nullable=False, default=0),
    Column("manifest_revision", BigInteger, nullable=False, default=-1),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("waiting_since", Double, nullable=False),  # created, retried, or its last shard ended: what ages
    Column("deleted_at", Double),
    Column("ttl", Double),  # seconds to keep the job after its end; null: for ever
    Column("fed", BigInteger),  # heartbeats of whoever feeds it prompts; null: they came all at once
    Column("feeder", Json),  # the process that feeds it, where that is known
    Column("truncated", Words),  # why its prompts ended before their producer did
    CheckConstraint(
        "(ended_at IS NULL) = (state IN ('queued', 'running', 'cancelling'))",
        name="ended",
    ),
    CheckConstraint(
        "num_shards = pending_shards + running_shards + done_shards + failed_shards + cancelled_shards",
        name="sums",
    ),
    Index(
        "jobs_open",
        "queue",
        "priority",
        "created_at",
        sqlite_where=text("ended_at IS NULL"),
        postgresql_where=text("ended_at IS NULL"),
    ),
    Index("jobs_name", "name"),
    _newest_first("state"),
    _newest_first("owner", "state"),
    _newest_first("model", "state"),
    _newest_first("queue", "state"),
    Index("jobs_idempotency", "owner", "idempotency_key", unique=True),
    Index(
        "jobs_manifest_behind",
        "id",
        sqlite_where=text("manifest_revision < revision"),
        postgresql_where=text("manifest_revision < revision"),
    ),
    Index("jobs_unsealed", "id", sqlite_where=text("NOT sealed"), postgresql_where=text("NOT sealed")),
    Index(
        "jobs_ttl",
        "ended_at",
        sqlite_where=text("ttl IS NOT NULL"),
        postgresql_where=text("ttl IS NOT NULL"),
    ),
)

job_labels = Table(  # an index of spec["labels"], for finding jobs that were not deleted
    "job_labels",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", Words, primary_key=True),
    Column("value", Words, nullable=False),
    Column("state", Text, nullable=False),  # the job's, as it is now
    Column("created_at", Double, nullable=False),  # the job's
    Index("job_labels_value_newest", "key", "value", "state", "created_at", "job_id"),
    Index("job_labels_key_newest", "key", "state", "created_at", "job_id"),
)

shards = Table(
    "shards",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("index", Integer, primary_key=True, autoincrement=False),
    Column("segment", Integer, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("stop", BigInteger, nullable=False),
    Column("first_prompt", BigInteger, nullable=False),
    Column("state", Text, nullable=False, default="pending"),
    Column("attempt", Integer, nullable=False, default=0),
    Column("failures", Integer, nullable=False, default=0),
    Column("worker_id", Text),
    Column("beat", BigInteger, nullable=False, default=0),
    Column("running_sequences", BigInteger, nullable=False, default=0),
    Column("running_tokens", BigInteger, nullable=False, default=0),
    Column("file", Text),
    Column("errors_file", Text),
    Column("sha256", Text),
    Column("bytes", BigInteger, nullable=False, default=0),
    Column("sequences", BigInteger, nullable=False, default=0),
    Column("tokens", BigInteger, nullable=False, default=0),
    Column("prompt_errors", BigInteger, nullable=False, default=0),
    Column("error", Words),
    Column("claimed_at", Double),
    Column("ended_at", Double),
    Column("done_order", Integer),  # 1 for the first of the job's shards that was done
    CheckConstraint("state IN ('pending', 'running', 'done', 'failed', 'cancelled')", name="state"),
    CheckConstraint("(state = 'done') = (file IS NOT NULL)", name="file"),
    Index(
        "shards_pending",
        "job_id",
        "index",
        sqlite_where=text("state = 'pending'"),
        postgresql_where=text("state = 'pending'"),
    ),
    Index(
        "shards_running",
        "job_id",
        "index",
        sqlite_where=text("state = 'running'"),
        postgresql_where=text("state = 'running'"),
    ),
    Index(
        "shards_done_order",
        "job_id",
        "done_order",
        unique=True,
        sqlite_where=text("done_order IS NOT NULL"),
        postgresql_where=text("done_order IS NOT NULL"),
    ),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("worker_id", Text, nullable=False),
    Column("claimed_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("outcome", Text),
    Column("error", Words),
    Column("tokens", BigInteger, nullable=False, default=0),
    Column("details", Json),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Words, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_started", Double, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("queues", Json, nullable=False),
    Column("device", Words, nullable=False),
    Column("model", Words),
    Column("paused", Words),
    Column("job_id", Text),
    Column("shard", Integer),
    Column("tokens_per_second", Double),
    Column("memory_used", BigInteger),  # bytes of the device, by whomever
    Column("memory_total", BigInteger),
    Column("beat", BigInteger, nullable=False, default=0),
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
)

sidecars = Table(  # later measurements of a shard's sequences, each in a file beside the shard's; deleted with the job
    "sidecars",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("name", Id, primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("of_sha256", Text, nullable=False),  # of the shard's file that was measured
    Column("file", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("unjudged", BigInteger, nullable=False),  # of the rows: those without a value
    Column("created_at", Double, nullable=False),
)

webhooks = Table(  # one row an end of a job that asked to be told of it; deleted with the job
    "webhooks",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("revision", BigInteger, primary_key=True, autoincrement=False),  # the job's, when it ended
    Column("url", Words, nullable=False),
    Column("tries", Integer, nullable=False, default=0),
    Column("next_try_at", Double),  # null once it is delivered or given up
    Column("delivered_at", Double),
    Column("error", Words),  # of the last try
    Column("created_at", Double, nullable=False),
    Index(
        "webhooks_due",
        "next_try_at",
        sqlite_where=text("next_try_at IS NOT NULL"),
        postgresql_where=text("next_try_at IS NOT NULL"),
    ),
)
