"""Chaos on PostgreSQL and Redis, which go away, come back and hang, and what else a site of many workers may meet."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

from kombu.exceptions import OperationalError

from jobs.doorbell import load_ringer
from jobs.settings import Settings
from tests.chaos.chaos import Chaos
from tests.faults.outages.disk import SmallDisk
from tests.faults.outages.proxy import Proxy, Where
from tests.faults.outages.puppet import DEADLY
from tests.faults.outages.site import PATIENCE, Process, Reference, Site
from tests.postgres import Server
from tests.redis_server import PASSWORD, RedisServer

_RINGS = 5  # of a message that is delivered too often


@dataclass(frozen=True)
class Servers:
    postgres: Server
    database: str  # has a clock of its own
    proxy: Proxy  # between workers and PostgreSQL
    redis: RedisServer

    @property
    def settings(self) -> dict[str, str]:
        return {"database_url": self.postgres.url(self.database), "redis_url": self.redis.url}

    @property
    def through(self) -> str:
        """The database's URL behind the proxy."""
        return f"{self.postgres.url(self.database, self.proxy.port)}?sslmode=disable&gssencmode=disable"


class ServersChaos(Chaos):
    """Workers reach PostgreSQL through the proxy; people do not."""

    def __init__(self, site: Site, seed: int, servers: Servers, *, disk: SmallDisk | None) -> None:
        super().__init__(site, seed, disk=disk)
        self.servers, self.postgres, self.redis = servers, servers.postgres, servers.redis
        self.lasting: set[Server | RedisServer] = set()  # what is away or hangs already
        self.strangers: list[Process] = []
        self.elsewhere = self.site.folder / "elsewhere"
        self.deadly = self.site.folder / "deadly"
        self.deadly.touch()

    def worker_settings(self) -> Settings:
        return self.site.settings.model_copy(update={"database_url": self.servers.through})

    def lane_faults(self) -> dict[Callable[[], None], int]:
        return {
            self.restart_postgres: 2,
            self.pause_postgres: 2,
            self.cut_connections: 2,
            self.set_the_databases_clock: 1,
            self.restart_redis: 1,
            self.empty_redis: 1,
            self.pause_redis: 1,
            self.ring_too_often: 2,
            self.suspend_all_workers: 1,
            self.start_a_stranger: 1,
            self.submit_what_kills: 1,
            self.delete: 1,
        }

    def settle(self) -> None:
        """And every worker hears rings again."""
        self.deadly.unlink()
        super().settle()
        self.site.until(self._all_listen)

    def check(self, reference: Reference) -> None:
        """And no process told the password, and none worked where it had no business."""
        for stranger in self.strangers:
            assert stranger.wait(PATIENCE) == 1, stranger.said()
            assert stranger.said().splitlines()[-1].startswith("Error: "), stranger.said()
        assert not self.elsewhere.exists()
        super().check(reference)
        assert not [process.said() for process in self.site.processes if PASSWORD[:6] in process.said()]

    def summary(self) -> str:
        return f"{super().summary()}; {self.servers.proxy.cuts} connections cut"

    # PostgreSQL.

    def restart_postgres(self) -> None:
        self._holds("PostgreSQL away", self.postgres, self.postgres.away())

    def pause_postgres(self) -> None:
        self._holds("PostgreSQL paused", self.postgres, self.postgres.paused())

    def cut_connections(self) -> None:
        wire, chance = self.servers.proxy, random.Random(self.random.random())
        ways: tuple[Where, Where] = ("before", "after")
        wire.choose_by(lambda _: chance.choice(ways) if chance.random() < 0.1 else None)
        self._lasts("connections cut", lambda: wire.choose_by(lambda _: None))

    def set_the_databases_clock(self) -> None:
        if self.postgres not in self.lasting:
            hours = self.random.randint(-50, 50)
            self.postgres.set_clock(self.servers.database, hours * 3600.0)
            self._tell("clock of PostgreSQL set", how=f"by {hours} h")

    # Redis.

    def restart_redis(self) -> None:
        self._holds("Redis away", self.redis, self.redis.away())

    def empty_redis(self) -> None:
        """Restarted at once, with nothing of what it held."""
        if self.redis not in self.lasting:
            with self.redis.away():
                self._tell("Redis restarted empty")

    def pause_redis(self) -> None:
        self._holds("Redis paused", self.redis, self.redis.paused())

    def ring_too_often(self) -> None:
        def ring() -> None:
            with suppress(OperationalError):  # Redis is away
                load_ringer(self.redis.url, self.site.store.store_id)("default", _RINGS)

        self._do("ring", ring, f"{_RINGS} times")

    # Workers and people.

    def suspend_all_workers(self) -> None:
        """Longer than the lease, often: nobody may take the others for dead when all wake up."""
        workers = self._alive()
        for worker in workers:
            worker.suspend()
        self._lasts("all suspended", lambda: [worker.resume() for worker in workers])

    def start_a_stranger(self) -> None:
        """A worker that was told another results folder."""
        settings = self.worker_settings().model_copy(update={"results_dir": self.elsewhere})
        self.strangers.append(self.site.worker(settings=settings))
        self._tell("start with the wrong results", self.strangers[-1])

    def submit_what_kills(self) -> None:
        """A job with a prompt that kills every worker that takes it, until the calm."""
        if (name := self._new_job()) is not None:
            prompts = self.prompts[name]
            prompts[self.random.randrange(len(prompts))] = f"{DEADLY}{self.deadly}"
            self._do("submit what kills", lambda: self._submit(name), name)

    def delete(self) -> None:
        self._steer("delete", lambda job: job.delete())

    def _holds(self, what: str, server: Server | RedisServer, fault: AbstractContextManager[None]) -> None:
        if server in self.lasting:
            return  # one at a time: away and paused at once is away
        self.lasting.add(server)
        fault.__enter__()

        def end() -> None:
            fault.__exit__(None, None, None)
            self.lasting.discard(server)

        self._lasts(what, end)

    def _all_listen(self) -> bool:
        """Whether every worker that lives waits at Redis for a ring."""
        with self.redis.client() as client:
            waiting = sum("b" in connection["flags"] for connection in client.client_list())
        return waiting == len(self._alive())
