"""What every part of the store stands on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from sqlalchemy import BindParameter, FromClause, Select, bindparam, literal_column

from jobs.store.database import Database
from jobs.store.schema import now, shards

_Query = TypeVar("_Query", bound=Select[Any])

NOW = now()  # one object, for statements that are built once: building one takes as long as running it

# Spelled out, not bound: only so can SQLite see that a partial index holds all that is asked for.
IS_PENDING = shards.c.state == literal_column("'pending'")
IS_RUNNING = shards.c.state == literal_column("'running'")


def through(query: _Query, table: FromClause, index: str) -> _Query:
    """The query, reading `table` by this partial index. SQLite, which has no statistics, would guess a worse one."""
    return query.with_hint(table, f"INDEXED BY {index}", "sqlite")


def new(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that are written, apart from those that choose the row."""
    return {f"new_{name}": value for name, value in values.items()}


def written(names: tuple[str, ...]) -> dict[str, BindParameter[Any]]:
    """What a statement that is built once sets these columns to: the parameters of `new`."""
    return {name: bindparam(f"new_{name}") for name in names}


class Part:
    """A group of operations over one database; `Store` is all of them."""

    db: Database
