"""A real `seqproc web` in a process of its own, asked over one kept connection.

Its time is taken here: from sending the request to the last byte of the answer, over loopback. That leaves out nothing
that the server does, and adds the little that asking costs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import psutil

from benchmarks.lanes import PATIENCE, ROOT, Lane
from benchmarks.wrong import Wrong

STALE = 1.2  # seconds after which the server draws a view again that it drew before


@dataclass
class Server:
    """The server, and when it was last asked for what."""

    port: int
    process: subprocess.Popen[bytes]
    _connection: HTTPConnection = field(init=False)
    _asked: dict[tuple[str, bool], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def get(self, path: str, *, poll: bool = False, fresh: bool = True) -> tuple[float, str]:
        """Seconds, and the answer. `poll`: what changes on the page, as htmx asks for it.

        `fresh` waits before it asks until the server has forgotten its last answer. `Wrong` if it does not answer 200.
        """
        if fresh:
            time.sleep(max(0.0, self._asked.get((path, poll), 0.0) + STALE - time.monotonic()))
        began = time.perf_counter()
        self._connection.request("GET", path, headers={"HX-Request": "true"} if poll else {})
        answer = self._connection.getresponse()
        body = answer.read()
        seconds = time.perf_counter() - began
        self._asked[path, poll] = time.monotonic()
        if answer.status != 200:
            raise Wrong(f"GET {path} was answered with {answer.status}: {body[:500]!r}")
        return seconds, body.decode()

    def cpu_seconds(self) -> float:
        """What the server's process has spent so far."""
        spent = psutil.Process(self.process.pid).cpu_times()
        return float(spent.user + spent.system)


@contextmanager
def server(lane: Lane) -> Iterator[Server]:
    """A server over the lane's database and results, on loopback and without a token. `Wrong` if it ends by itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEQPROC_")}
    settings = {"SEQPROC_HOME": str(lane.home), "SEQPROC_DATABASE_URL": lane.database_url}
    environment = kept | {name: value for name, value in settings.items() if value}
    command = [sys.executable, "-P", "-m", "jobs", "web", "--port", "0"]
    log = lane.home / "web.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=stderr)
    try:
        running = Server(_port(process, log), process)
        running.get("/healthz")
        yield running
        if process.poll() is not None:
            raise Wrong(f"The server ended with {process.returncode}: {_end_of(log)}")
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + PATIENCE
    while (found := re.search(r"listening on http://.*:(\d+)", log.read_text())) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise Wrong(f"The server did not start: {_end_of(log)}")
        time.sleep(0.02)
    return int(found[1])


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]
