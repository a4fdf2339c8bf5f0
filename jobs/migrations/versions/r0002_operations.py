"""Operations: how long jobs are kept, whom to tell of their end, and how full a worker's device is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_Id = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("ttl", sa.Double))
    _partial_index("jobs_ttl", "jobs", ["ended_at"], "ttl IS NOT NULL")
    for name in ("memory_used", "memory_total"):
        op.add_column("workers", sa.Column(name, sa.BigInteger))
    op.create_table(
        "webhooks",
        sa.Column("job_id", _Id, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        *(sa.Column(name, sa.Double) for name in ("next_try_at", "delivered_at")),
        sa.Column("error", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "revision", name="pk_webhooks"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_webhooks_job_id", ondelete="CASCADE"),
    )
    _partial_index("webhooks_due", "webhooks", ["next_try_at"], "next_try_at IS NOT NULL")


def _partial_index(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
