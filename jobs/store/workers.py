"""The processes that claim, as they describe themselves. Nothing hangs on these rows but what people are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Update, bindparam, delete, insert, select, update

from jobs.presence import SILENT_SECONDS
from jobs.processes import ProcessName
from jobs.records import Worker
from jobs.store.part import NOW, Part, new, written
from jobs.store.rows import WORKER_COLUMNS, worker_record
from jobs.store.schema import now, workers


class Workers(Part):
    def register_worker(self, worker_id: str, process: ProcessName, *, queues: Sequence[str], device: str = "") -> None:
        """Enter a worker, in place of an older row with its id; `device` may be told later, when it is known."""
        with self.db.transaction() as connection:
            connection.execute(delete(workers).where(workers.c.id == worker_id))
            seen = connection.scalar(select(now()))
            times = {"started_at": seen, "seen_at": seen}
            connection.execute(
                insert(workers).values(id=worker_id, **asdict(process), queues=list(queues), device=device, **times)
            )

    def worker_beat(self, worker_id: str, **changes: Any) -> bool:
        """The worker lives; `changes` are columns of its row. False if the row is gone: register again."""
        with self.db.transaction() as connection:
            return tell(connection, worker_id, changes)

    def forget_worker(self, worker_id: str) -> None:
        """The worker has left."""
        with self.db.transaction() as connection:
            connection.execute(delete(workers).where(workers.c.id == worker_id))

    def workers(self) -> list[Worker]:
        """All workers that have not left, oldest first; whether one still lives is for the reader of `seen_at`."""
        with self.db.reading() as connection:
            rows = connection.execute(select(*WORKER_COLUMNS).order_by(workers.c.started_at, workers.c.id))
            return [worker_record(row) for row in rows]

    def idle_workers(self, queue: str) -> int:
        """How many workers of the queue have nothing to do, as far as they were seen of late."""
        at_rest = (workers.c.job_id.is_(None), workers.c.paused.is_(None), workers.c.seen_at > now() - SILENT_SECONDS)
        with self.db.reading() as connection:
            return sum(queue in queues for queues in connection.scalars(select(workers.c.queues).where(*at_rest)))

    def clock(self) -> float:
        """Seconds since the epoch by the database's clock, which every time in it was taken from."""
        with self.db.reading() as connection:
            return float(connection.scalar(select(now())) or 0.0)


def tell(connection: Connection, worker_id: str, changes: Mapping[str, Any]) -> bool:
    """Within a transaction: the worker lives, and `changes` are columns of its row. False if it has no row."""
    told = connection.execute(_telling(tuple(changes)), {"worker": worker_id, **new(changes)})
    return told.rowcount == 1


@lru_cache(maxsize=64)
def _telling(names: tuple[str, ...]) -> Update:
    this = update(workers).where(workers.c.id == bindparam("worker"))
    return this.values(beat=workers.c.beat + 1, seen_at=NOW, **written(names))
