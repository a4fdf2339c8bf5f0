"""The servers and sites of the outages' tests, for faults of all kinds at once."""

import pytest

from tests.chaos.servers import Servers
from tests.faults.outages.conftest import (  # noqa: F401
    database,
    new_database,
    new_site,
    proxy,
    reference,
    server,
)
from tests.faults.outages.proxy import Proxy
from tests.postgres import Server
from tests.redis_server import RedisServer


@pytest.fixture
def servers(server: Server, database: str, proxy: Proxy, own_redis: RedisServer) -> Servers:  # noqa: F811
    server.give_clock(database)
    return Servers(server, database, proxy, own_redis)
