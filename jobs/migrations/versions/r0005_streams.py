"""Streams: the order in which a job's shards were done, and jobs that are fed prompts while they run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("fed", sa.BigInteger))
    op.add_column("jobs", sa.Column("feeder", sa.JSON))
    op.add_column("jobs", sa.Column("truncated", sa.Text))
    unsealed = sa.text("NOT sealed")
    op.create_index("jobs_unsealed", "jobs", ["id"], sqlite_where=unsealed, postgresql_where=unsealed)
    op.add_column("shards", sa.Column("done_order", sa.Integer))
    order = 'row_number() OVER (PARTITION BY job_id ORDER BY ended_at, "index")'
    done = f"""SELECT job_id, "index", {order} AS number FROM shards WHERE state = 'done'"""
    op.execute(
        f"UPDATE shards SET done_order = done.number FROM ({done}) AS done "
        'WHERE done.job_id = shards.job_id AND done."index" = shards."index"'
    )
    numbered = sa.text("done_order IS NOT NULL")
    op.create_index(
        "shards_done_order",
        "shards",
        ["job_id", "done_order"],
        unique=True,
        sqlite_where=numbered,
        postgresql_where=numbered,
    )
