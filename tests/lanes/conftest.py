"""The suite of the lanes: the same jobs, however a worker hears of them and wherever they are kept."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from fakeredis import TcpFakeServer

from jobs.settings import Settings
from tests.lanes.lane import NEVER, Lane
from tests.redis_server import RedisServer

QUICK: dict[str, Any] = {"heartbeat_seconds": 0.1, "poll_seconds": NEVER}


@pytest.fixture(scope="session")
def fake_redis() -> Iterator[str]:
    """The URL of a Redis without a server."""
    with TcpFakeServer(("127.0.0.1", 0)) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()


def make_lane(name: str, folder: Path, request: pytest.FixtureRequest) -> Lane:
    """`inline`: in this process; `embedded`: processes on SQLite; `fakeredis`: the same, rung through a fake Redis;
    `servers`: processes on PostgreSQL, rung through a real Redis."""
    home = {"home": folder / "home", **QUICK}
    if name != "servers":
        (folder / "home").mkdir()
        shutil.copy(request.getfixturevalue("migrated_file"), folder / "home" / "seqproc.db")
    if name == "inline":
        return Lane(Settings(**home), folder, in_process=True)
    if name == "embedded":
        return Lane(Settings(**home), folder)
    if name == "fakeredis":
        return Lane(Settings(redis_url=_emptied(request.getfixturevalue("fake_redis")), **home), folder)
    server: RedisServer = request.getfixturevalue("redis_server")
    database = request.getfixturevalue("make_postgres")(request.getfixturevalue("migrated_template"))
    return Lane(Settings(database_url=database.database_url, redis_url=_emptied(server.url), **home), folder)


def _emptied(url: str) -> str:
    """The same Redis without the last test's rings: copies of one database bear one id, and so the same keys."""
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return url


@pytest.fixture(params=["inline", "embedded", "fakeredis", "servers"])
def lane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lane]:
    made = make_lane(request.param, tmp_path, request)
    yield made
    made.close()


@pytest.fixture(params=["fakeredis", "servers"])
def rung_lane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lane]:
    """A lane in which rings travel through Redis."""
    made = make_lane(request.param, tmp_path, request)
    yield made
    made.close()


@pytest.fixture
def servers_lane(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lane]:
    made = make_lane("servers", tmp_path, request)
    yield made
    made.close()


def waiting_rings(lane: Lane, queue: str = "default") -> int:
    """How many rings of the lane's queue nobody has taken yet."""
    with redis.Redis.from_url(lane.settings.redis_url) as client:
        return int(client.llen(f"seqproc:{lane.store.store_id}:{queue}"))
