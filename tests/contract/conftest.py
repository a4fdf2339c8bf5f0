"""The contract suite runs every behaviour of the store over SQLite and over PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.settings import Settings
from jobs.store import Store


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def fresh(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of a database with nothing in it."""
    if dialect == "sqlite":
        return Settings(home=tmp_path / "home")
    settings: Settings = request.getfixturevalue("make_postgres")()
    return settings


@pytest.fixture
def settings(dialect: str, request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings of a database that has the schema and no job."""
    if dialect == "sqlite":
        (tmp_path / "home").mkdir()
        shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "home" / "seqproc.db")
        return Settings(home=tmp_path / "home")
    make: Callable[[str], Settings] = request.getfixturevalue("make_postgres")
    return make(request.getfixturevalue("migrated_template"))


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    store = Store.open(settings)
    yield store
    store.close()
