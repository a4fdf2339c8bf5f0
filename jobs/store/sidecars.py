"""Sidecars: which later measurement of which shard's file lies in which file. The newest replaces the one before.

A row counts only while the shard's file is the one that was measured; another is as if it were not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, delete, insert, select

from jobs.records import Sidecar
from jobs.states import ShardState
from jobs.store.locked import LockedJob
from jobs.store.part import NOW, Part
from jobs.store.rows import SIDECAR_COLUMNS
from jobs.store.schema import shards, sidecars


class Sidecars(Part):
    def put_sidecar(self, sidecar: Sidecar) -> bool:
        """Make this the shard's sidecar of its kind and name; its file is already durable on disk.

        False, and nothing changes, if the shard's file is not the one that was measured. Raises JobNotFound.
        """
        index = shards.c.index == sidecar.shard
        measured = (index, shards.c.state == ShardState.DONE, shards.c.sha256 == sidecar.of_sha256)
        with self.db.transaction() as connection:
            job = LockedJob.take(connection, sidecar.job_id)
            if connection.scalar(select(shards.c.index).where(shards.c.job_id == job.id, *measured)) is None:
                return False
            write_sidecars(connection, [sidecar])
            job.save()
            return True

    def sidecar_names(self, job_id: str) -> list[tuple[str, str]]:
        """The (kind, name) of every sidecar that any shard of the job has, sorted."""
        with self.db.reading() as connection:
            return _names(connection, job_id)

    def sidecars(self, job_id: str, *, first: int = 0, last: int = 2**31 - 1) -> list[Sidecar]:
        """The sidecars that count of the shards `first` to `last`, by kind, name and shard, as of one moment."""
        with self.db.reading() as connection:
            found = []
            for kind, name in _names(connection, job_id):
                of_these = (sidecars.c.kind == kind, sidecars.c.name == name, sidecars.c.shard.between(first, last))
                query = _counting(job_id).where(*of_these).order_by(sidecars.c.shard)
                found += [Sidecar(**row._mapping) for row in connection.execute(query)]
            return found

    def sidecar(self, job_id: str, kind: str, name: str, shard: int) -> Sidecar | None:
        """One of them, if it counts."""
        this = (sidecars.c.kind == kind, sidecars.c.name == name, sidecars.c.shard == shard)
        with self.db.reading() as connection:
            row = connection.execute(_counting(job_id).where(*this)).one_or_none()
            return None if row is None else Sidecar(**row._mapping)

    def sidecar_files(self, job_id: str) -> set[str]:
        """Every file that a row names, whether or not it counts."""
        with self.db.reading() as connection:
            return set(connection.scalars(select(sidecars.c.file).where(sidecars.c.job_id == job_id)))


def write_sidecars(connection: Connection, new: Sequence[Sidecar]) -> None:
    """Write rows in a transaction that holds the job, each in place of the one that stands for the same."""
    for sidecar in new:
        key = (sidecars.c[name] == getattr(sidecar, name) for name in ("job_id", "kind", "name", "shard"))
        connection.execute(delete(sidecars).where(*key))
        values = {column.name: getattr(sidecar, column.name) for column in SIDECAR_COLUMNS}
        connection.execute(insert(sidecars).values(**values | {"created_at": NOW}))


def _names(connection: Connection, job_id: str) -> list[tuple[str, str]]:
    """From one pair to the next in the primary key: as many steps as there are pairs, however many rows."""
    found: list[tuple[str, str]] = []
    pair = select(sidecars.c.kind, sidecars.c.name).where(sidecars.c.job_id == job_id)
    pair = pair.order_by(sidecars.c.kind, sidecars.c.name).limit(1)
    row = connection.execute(pair).one_or_none()
    while row is not None:
        found.append((row.kind, row.name))
        same_kind = pair.where(sidecars.c.kind == row.kind, sidecars.c.name > row.name)
        row = (
            connection.execute(same_kind).one_or_none()
            or connection.execute(pair.where(sidecars.c.kind > row.kind)).one_or_none()
        )
    return found


def _counting(job_id: str) -> Select[Any]:
    of_shard = (shards.c.job_id == sidecars.c.job_id) & (shards.c.index == sidecars.c.shard)
    present = (shards.c.state == ShardState.DONE, shards.c.sha256 == sidecars.c.of_sha256)
    return select(*SIDECAR_COLUMNS).join(shards, of_shard).where(sidecars.c.job_id == job_id, *present)
