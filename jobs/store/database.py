"""One connection pool to SQLite or PostgreSQL, and the two ways to use it: `reading()` and `transaction()`.

A writing transaction on SQLite begins with BEGIN IMMEDIATE: it holds the one write lock from its first statement, so
what it reads is still true when it writes (the driver's default silently loses updates). On PostgreSQL transactions are
READ COMMITTED and lock the job's row before they decide. Whatever keeps the database from answering is a StoreError.
"""

from __future__ import annotations

import json
import select
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler
from sqlalchemy.exc import ArgumentError, DatabaseError, DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from jobs.errors import StoreError
from jobs.redact import without_credentials

BUSY_SECONDS = 30  # how long to wait for another process's write, or for a row's lock
CONNECT_SECONDS = 10
# A host that vanishes sends no reset: half a minute without its kernel's acknowledgement is the end of a connection,
# whether an answer is waited for (keepalives) or a statement is on its way. A server that only stands still is waited
# for: its kernel goes on acknowledging.
_VANISHED = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4, "tcp_user_timeout": 30_000}
# SQLSTATE classes of a server that is away or worn out: connection, transaction timeouts come as 25P03, resources,
# operator intervention, system. A standby after a failover refuses writes with 25006.
_AWAY = ("08", "53", "57", "58")
_READ_ONLY = "25006"
_EXAMPLE = "sqlite:////path/to/seqproc.db or postgresql://user:password@host/database"


class Database:
    """A lazy pool of connections; nothing is opened until the first transaction."""

    def __init__(self, url: str) -> None:
        parsed = _parse(url)
        self.url = without_credentials(parsed.render_as_string(hide_password=True))
        self.dialect = parsed.get_backend_name()
        self.file = parsed.database if self.dialect == "sqlite" else None
        try:
            self.engine = _sqlite(parsed) if self.file else _postgresql(parsed)
        except ModuleNotFoundError as error:
            raise StoreError(
                f"{self.url} needs the package {error.name}; install sequence-processor[postgres]"
            ) from None
        self._writing = self.engine.execution_options(writes=True)
        # A statement of READ COMMITTED sees what was committed when it began, in a transaction or by itself.
        by_itself = {} if self.file else {"isolation_level": "AUTOCOMMIT"}
        self._reading = self.engine.execution_options(**by_itself)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """For statements that only read: on SQLite one snapshot, on PostgreSQL one each. Waits for no writer."""
        with self._sentences(), self._reading.begin() as connection:
            yield connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction that writes: committed at the end of the block, rolled back by any exception in it.

        Raises StoreError if the database does not answer. The commit itself may then have happened or not.
        """
        with self._sentences(), self._writing.begin() as connection:
            yield connection

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout:
            raise StoreError(f"{self.url}: all connections of this process are busy; try again") from None
        except (OperationalError, InterfaceError) as error:
            raise StoreError(self._explain(str(error.orig))) from error
        except DatabaseError as error:
            state = getattr(error.orig, "sqlstate", None) or ""
            if type(error) is not DatabaseError and state[:2] not in _AWAY and state != _READ_ONLY:
                raise  # a broken constraint or wrong SQL: for the caller, or a bug
            raise StoreError(self._explain(str(error.orig))) from error

    def _explain(self, cause: str) -> str:
        cause = without_credentials(" ".join(cause.split()))
        if "database is locked" in cause:
            return f"{self.url} has been locked by another process for more than {BUSY_SECONDS} s; try again"
        if "unable to open" in cause or "readonly" in cause:
            return f"{self.url} cannot be opened for writing ({cause}); check SEQPROC_HOME or SEQPROC_DATABASE_URL"
        if "is full" in cause:
            return f"{self.url} cannot grow ({cause}); free some space"
        if "not a database" in cause:
            return f"{self.url} is not an SQLite database; check SEQPROC_DATABASE_URL"
        return f"the database {self.url} does not answer: {cause}"


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise StoreError(f"SEQPROC_DATABASE_URL is not a database URL; give one like {_EXAMPLE}") from None
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise StoreError(f"databases of kind {parsed.drivername} are not supported; give one like {_EXAMPLE}")
    if not parsed.database or parsed.database == ":memory:":
        shown = without_credentials(url)
        raise StoreError(f"{shown} names no file, and other processes must see the database; give one like {_EXAMPLE}")
    return parsed


class _SQLiteWithHints(SQLiteCompiler):
    """SQLAlchemy leaves hints out on SQLite, but SQLite has one: `INDEXED BY`."""

    def get_from_hint_text(self, table: Any, text: str | None) -> str | None:
        return text


def _json_or_text(stored: Any) -> Any:
    """What a JSON column holds; SQLite does not check that it is JSON, and what is not comes as it stands."""
    try:
        return json.loads(stored)
    except (ValueError, TypeError):
        return stored


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS}, json_deserializer=_json_or_text)
    engine.dialect.statement_compiler = _SQLiteWithHints

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None  # the driver shall begin nothing by itself
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(url: URL) -> Engine:
    # A process frozen inside a transaction must not hold a job's row for ever.
    options = f"-c lock_timeout={BUSY_SECONDS}s -c idle_in_transaction_session_timeout={BUSY_SECONDS}s"
    defaults = {"connect_timeout": CONNECT_SECONDS, "options": options, **_VANISHED}
    engine = create_engine(url, connect_args={k: v for k, v in defaults.items() if k not in url.query})

    @event.listens_for(engine, "checkout")
    def look(connection: Any, record: Any, proxy: Any) -> None:
        """Ask an idle connection whether it is still there; a round trip only if something has come on it.

        A server that goes away closes its connections, and says nothing on idle ones before.
        """
        try:
            if _has_come(connection.fileno()):
                engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as gone:
            raise DisconnectionError from gone  # the pool opens another

    return engine


def _has_come(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
