"""A site on SQLite, one on a PostgreSQL that may be stopped, and what undisturbed jobs make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from jobs.settings import Settings
from jobs.store import Store
from tests.conftest import postgres_binaries
from tests.faults.outages.proxy import Proxy
from tests.faults.outages.site import Reference, Site
from tests.postgres import Server


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    made = Reference(tmp_path_factory.mktemp("reference"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for outages alone, with the schema in its database `migrated`."""
    running = Server(postgres_binaries(), durable=True)
    try:
        running.start()
        running.execute("CREATE DATABASE migrated")
        Store.migrate(Settings(home=tmp_path_factory.mktemp("home"), database_url=running.url("migrated")))
        yield running
    finally:
        running.close()


@pytest.fixture
def new_database(server: Server) -> Iterator[Callable[[], str]]:
    """Makes a database with the schema and nothing in it; its name."""
    names: list[str] = []

    def make() -> str:
        names.append(f"test_{uuid4().hex[:12]}")
        server.execute(f"CREATE DATABASE {names[-1]} TEMPLATE migrated")
        return names[-1]

    yield make
    for name in names:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def new_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes a site with these settings; closed after the test."""
    sites: list[Site] = []

    def make(**settings: Any) -> Site:
        sites.append(Site(tmp_path / f"site-{len(sites)}", **settings))
        return sites[-1]

    yield make
    for site in sites:
        site.close()


@pytest.fixture
def sqlite_site(new_site: Callable[..., Site]) -> Site:
    return new_site()


@pytest.fixture
def database(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
def postgres_site(server: Server, database: str, new_site: Callable[..., Site]) -> Site:
    return new_site(database_url=server.url(database))


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest) -> Site:
    """The same test on both databases."""
    made: Site = request.getfixturevalue("sqlite_site" if request.param == "sqlite" else "postgres_site")
    return made


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    between = Proxy(server.port)
    yield between
    between.close()
