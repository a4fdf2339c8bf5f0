"""One set of jobs, reached in two ways: by the local client, and over HTTP from a real server process with a token."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete

from jobs import Client
from jobs.records import Job
from jobs.settings import Settings
from jobs.store.schema import jobs, workers
from tests.house import House
from tests.web.conftest import TOKEN, Web, launch

PROMPTS = ["p0", "p1", "bad", "p3", "p4"]


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Iterator[tuple[Settings, Web]]:
    """A home with a server process over it, for all tests: to start one takes longer than most of them."""
    folder = tmp_path_factory.mktemp("machine")
    settings = Settings(home=folder / "home")
    settings.home.mkdir()
    shutil.copy(migrated_file, settings.home)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SEQPROC_")]:
            patch.delenv(name)
        web = launch(folder / "web.log", SEQPROC_HOME=str(settings.home), SEQPROC_TOKEN=TOKEN)
    yield settings, web
    web.process.kill()
    web.process.wait()


@pytest.fixture
def local(machine: tuple[Settings, Web]) -> Iterator[Client]:
    """The client of that machine, which has no job when a test begins."""
    settings, _ = machine
    with Client(settings) as client:
        yield client
        with client.store.db.transaction() as connection:
            connection.execute(delete(jobs))
            connection.execute(delete(workers))
    for folder in ("jobs", "logs"):
        shutil.rmtree(settings.results / folder, ignore_errors=True)


@pytest.fixture
def house(local: Client) -> House:
    """A worker's hand on that machine."""
    return House(local.settings, local.store)


@pytest.fixture
def web(machine: tuple[Settings, Web], local: Client) -> Web:
    return machine[1]


@pytest.fixture(params=["local", "http"])
def client(request: pytest.FixtureRequest, local: Client) -> Iterator[Client]:
    """Each test that takes it holds for both ways."""
    if request.param == "local":
        yield local
        return
    web: Web = request.getfixturevalue("web")
    with Client(f"http://127.0.0.1:{web.port}", token=TOKEN) as client:
        yield client


@pytest.fixture
def remote(web: Web) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{web.port}", token=TOKEN) as client:
        yield client


@pytest.fixture
def job(house: House) -> Job:
    """Five prompts in three shards, the third prompt an error."""
    rows = [{"prompt": p, "custom_id": f"c{i}"} for i, p in enumerate(PROMPTS)]
    return house.finish(house.submit(prompts=rows, name="made").job)


@pytest.fixture
def cache(isolated_home: Path) -> Path:
    """Where a remote client keeps the files that it fetched."""
    return isolated_home / "cache"
