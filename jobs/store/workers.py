"""The processes that claim, as they describe themselves. Nothing hangs on these rows but what people are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, insert, select, update

from jobs.processes import ProcessName
from jobs.records import Worker
from jobs.store.part import Part
from jobs.store.rows import WORKER_COLUMNS, worker_record
from jobs.store.schema import now, workers

SEEN_WITHIN = 60.0  # seconds: workers are seen about every second, so one silent for so long is not counted on


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
        query = update(workers).where(workers.c.id == worker_id)
        with self.db.transaction() as connection:
            beaten = connection.execute(query.values(beat=workers.c.beat + 1, seen_at=now(), **changes))
            return beaten.rowcount == 1

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
        at_rest = (workers.c.job_id.is_(None), workers.c.paused.is_(None), workers.c.seen_at > now() - SEEN_WITHIN)
        with self.db.reading() as connection:
            return sum(queue in queues for queues in connection.scalars(select(workers.c.queues).where(*at_rest)))

    def clock(self) -> float:
        """Seconds since the epoch by the database's clock, which every time in it was taken from."""
        with self.db.reading() as connection:
            return float(connection.scalar(select(now())) or 0.0)
