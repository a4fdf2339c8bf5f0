"""Bringing a database to the schema that this version speaks, and refusing one that is newer or not ours.

Any number of processes may try at once: SQLite under a file lock beside the file, PostgreSQL under an advisory lock;
each looks, takes the lock, and looks again. An SQLite file that already held tables is copied first. The migration
itself is one transaction on both, so a crash in the middle leaves the old schema.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from filelock import FileLock, Timeout
from sqlalchemy import Connection, inspect, text

from jobs.errors import StoreError
from jobs.store.database import BUSY_SECONDS, Database
from jobs.store.schema import REVISION

_ADVISORY_LOCK = 0x5E9_9B0C  # any number that no other program of this database uses


def schema_version(db: Database) -> str | None:
    """The revision of the database's schema; None if it holds none of ours yet."""
    with db.reading() as connection:
        return _version(connection, db.url)


def check(db: Database) -> None:
    """Raise StoreError unless the schema is exactly the one that this version speaks."""
    have = schema_version(db)
    _refuse_newer(db, have)
    if have != REVISION:
        found = f"has schema {have}" if have else "has no schema yet"
        raise StoreError(f"{db.url} {found}, and this version needs {REVISION}; run `seqproc db upgrade`")


def migrate(db: Database) -> str:
    """Migrate if need be; a sentence saying what was done. StoreError for a newer schema or a foreign database."""
    if db.file:
        _make_folder(Path(db.file))
    have = schema_version(db)
    if have != REVISION:
        _refuse_newer(db, have)
        have = _migrate_sqlite(db, Path(db.file)) if db.file else _migrate_postgresql(db)
    if have == REVISION:
        return f"{db.url} already has schema {REVISION}"
    return f"{db.url} migrated from schema {have or '(none)'} to {REVISION}"


def _version(connection: Connection, url: str) -> str | None:
    tables = inspect(connection)
    # First: on PostgreSQL each look sees what was committed by then, and another process may be migrating.
    has_jobs = tables.has_table("jobs")
    if tables.has_table("alembic_version"):
        version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return version
    if has_jobs:
        raise StoreError(f"{url} holds a table `jobs` of another program; give this one a database of its own")
    return None


def _refuse_newer(db: Database, have: str | None) -> None:
    if have is not None and have > REVISION:
        raise StoreError(
            f"{db.url} has schema {have}, newer than {REVISION}, the newest that this version knows; "
            "upgrade sequence-processor"
        )


def _make_folder(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make the folder {file.parent} of the database ({error.strerror}); "
            "set SEQPROC_HOME to a folder that you can write"
        ) from None


def _migrate_sqlite(db: Database, file: Path) -> str | None:
    try:
        with FileLock(f"{file}.migrate-lock", timeout=4 * BUSY_SECONDS):
            have = schema_version(db)
            _refuse_newer(db, have)
            if have is not None and have != REVISION:
                _copy(file, file.with_name(f"{file.name}.schema-{have}"))
            if have != REVISION:
                with closing(sqlite3.connect(file, timeout=BUSY_SECONDS)) as raw:
                    raw.execute("PRAGMA journal_mode = WAL")  # kept in the file; outside any transaction
                with db.transaction() as connection:
                    _upgrade(connection)
            return have
    except Timeout:
        raise StoreError(f"another process has been migrating {db.url} for minutes; see what it is doing") from None
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{db.url} cannot be migrated: {error}") from error


def _copy(file: Path, target: Path) -> None:
    """A consistent copy of a database that others may be using, write-ahead log included."""
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)


def _migrate_postgresql(db: Database) -> str | None:
    with db.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        have = _version(connection, db.url)
        if have != REVISION:
            _refuse_newer(db, have)
            _upgrade(connection)
        return have


def _upgrade(connection: Connection, revision: str = "head") -> None:
    # Alembic takes a tenth of a second to import, and only a migration needs it.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "jobs:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
