"""Lists: the jobs of each owner, model, queue and label newest first, without looking at any other."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.drop_index("jobs_newest", "jobs")
    op.drop_index("jobs_state_newest", "jobs")
    for columns in (["state"], ["owner", "state"], ["model", "state"], ["queue", "state"]):
        where = sa.text("deleted_at IS NULL")
        name = f"jobs_{columns[0]}_newest"
        order = [*columns, "created_at", "id", "deleted_at"]
        op.create_index(name, "jobs", order, sqlite_where=where, postgresql_where=where)
    op.drop_index("job_labels_value", "job_labels")
    op.add_column("job_labels", sa.Column("state", sa.Text))
    op.add_column("job_labels", sa.Column("created_at", sa.Double))
    op.execute("DELETE FROM job_labels WHERE job_id IN (SELECT id FROM jobs WHERE deleted_at IS NOT NULL)")
    job = "SELECT state, created_at FROM jobs WHERE jobs.id = job_labels.job_id"
    op.execute(f"UPDATE job_labels SET (state, created_at) = ({job})")
    with op.batch_alter_table("job_labels") as labels:
        labels.alter_column("state", nullable=False)
        labels.alter_column("created_at", nullable=False)
    op.create_index("job_labels_value_newest", "job_labels", ["key", "value", "state", "created_at", "job_id"])
    op.create_index("job_labels_key_newest", "job_labels", ["key", "state", "created_at", "job_id"])
