"""What every part of the store stands on."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import FromClause, Select, literal_column

from jobs.store.database import Database
from jobs.store.schema import shards

_Query = TypeVar("_Query", bound=Select[Any])

# Spelled out, not bound: only so can SQLite see that a partial index holds all that is asked for.
IS_PENDING = shards.c.state == literal_column("'pending'")
IS_RUNNING = shards.c.state == literal_column("'running'")


def through(query: _Query, table: FromClause, index: str) -> _Query:
    """The query, reading `table` by this partial index. SQLite, which has no statistics, would guess a worse one."""
    return query.with_hint(table, f"INDEXED BY {index}", "sqlite")


class Part:
    """A group of operations over one database; `Store` is all of them."""

    db: Database
