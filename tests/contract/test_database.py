"""A database that does not answer: one sentence, with the URL and without the password."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from jobs.errors import StoreError
from jobs.settings import Settings
from jobs.store import Store, database
from jobs.store.schema import now
from tests.contract.helpers import submit


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nonsense", "not a database URL"),
        ("mysql://u:secret@h/d", "mysql are not supported"),
        ("sqlite://", "names no file"),
        ("postgresql://u:secret@127.0.0.1:1/d", r"postgresql\+psycopg://u:\*\*\*@127.0.0.1:1/d does not answer"),
    ],
)
def test_urls_that_lead_nowhere(url: str, sentence: str) -> None:
    with pytest.raises(StoreError, match=sentence) as raised:
        Store.open(Settings(database_url=url))
    assert "secret" not in str(raised.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "seqproc.db").write_text("dear diary, " * 200)
    with pytest.raises(StoreError, match="is not an SQLite database"):
        Store.open(Settings(home=tmp_path))


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot make the folder .*SEQPROC_HOME"):
        Store.open(Settings(home=tmp_path / "file" / "home"))


def test_a_file_that_another_process_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store.open(Settings(home=tmp_path)).close()
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    holder, waiting = Store.open(Settings(home=tmp_path)), Store.open(Settings(home=tmp_path))
    with holder.db.transaction():
        assert waiting.jobs() == []  # readers wait for no writer
        with pytest.raises(StoreError, match="locked by another process"):
            submit(waiting)
    submit(waiting)


def test_times_are_the_databases(store: Store) -> None:
    with store.db.reading() as connection:
        first = connection.scalar(select(now()))
    job = submit(store, 1)
    with store.db.reading() as connection:
        last = connection.scalar(select(now()))
    assert first is not None
    assert last is not None
    # SQLite's clock ticks in milliseconds, and a day in a double has less than a tenth of one.
    assert first - 1e-3 <= job.created_at <= last + 1e-3
    assert isinstance(first, float)


def test_a_connection_that_died_is_replaced(store: Store, settings: Settings, dialect: str) -> None:
    store.jobs()
    if dialect == "sqlite":
        store.close()  # a pool that was closed opens again
    else:
        killer = Store.open(settings)
        with killer.db.transaction() as connection:
            killed = connection.exec_driver_sql(
                "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert killed.scalar()
        killer.close()
    submit(store, 1)


@pytest.mark.parametrize(
    ("query", "silence"),
    [("", ("10", "5", "4", "30000")), ("?keepalives_idle=7&tcp_user_timeout=9", ("7", "5", "4", "9"))],
)
def test_how_long_a_silent_host_is_borne_with(
    make_postgres: Callable[[], Settings], query: str, silence: tuple[str, ...]
) -> None:
    connected = database.Database(make_postgres().database_url + query)
    with connected.reading() as connection:
        used = connection.connection.driver_connection.info.get_parameters()
    connected.close()
    names = ("keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")
    assert tuple(used[name] for name in names) == silence


def test_importing_the_store_is_light() -> None:
    heavy = ["alembic", "torch", "transformers", "celery", "psycopg", "pyarrow"]
    code = f"import sys, jobs.store; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
