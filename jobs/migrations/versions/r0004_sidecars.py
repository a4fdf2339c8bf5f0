"""Sidecars: measurements of a shard's sequences that were made later, in files beside the shard's own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_Id = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "sidecars",
        sa.Column("job_id", _Id, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", _Id, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("of_sha256", "file", "sha256")),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("bytes", "rows", "unjudged")),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "kind", "name", "shard", name="pk_sidecars"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_sidecars_job_id", ondelete="CASCADE"),
    )
