"""The plans of all statements with a LIMIT: those by which the store chooses a few among many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from jobs.store import Store


@contextmanager
def plans(store: Store) -> Iterator[list[str]]:
    """The plans of what the block asks, in order."""
    explain = "EXPLAIN QUERY PLAN" if store.dialect == "sqlite" else "EXPLAIN (COSTS OFF)"
    seen: list[str] = []

    def look(_connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "LIMIT" in statement and not statement.startswith("EXPLAIN"):
            asked = cursor.connection.cursor()
            asked.execute(f"{explain} {statement}", parameters)
            seen.append("\n".join(str(row[-1]) for row in asked.fetchall()))

    event.listen(store.db.engine, "before_cursor_execute", look)
    yield seen
    event.remove(store.db.engine, "before_cursor_execute", look)
