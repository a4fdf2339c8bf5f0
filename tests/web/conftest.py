"""Real servers: `seqproc web` in a process of its own, on a port of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest

TOKEN = "tok-0123456789"


@dataclass
class Answer:
    """What a request got."""

    status: int
    headers: dict[str, str]
    text: str


@dataclass
class Web:
    """One server process."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int

    def get(self, path: str, address: str = "127.0.0.1", **headers: str) -> Answer:
        """GET; a keyword is a header."""
        connection = HTTPConnection(address, self.port, timeout=30)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read().decode())
        finally:
            connection.close()

    def lines(self) -> list[dict[str, object]]:
        """What it logged so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


Start = Callable[..., Web]


def launch(log: Path, *flags: str, program: Sequence[str] = ("-m", "jobs"), **environment: str) -> Web:
    """A server, once it listens."""
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", *program, "web", "--port", "0", *flags],
            env={**os.environ, **environment},
            stderr=stderr,
        )
    try:
        deadline = time.monotonic() + 60
        while (found := re.search(r"listening on http://.*:(\d+)", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        return Web(process, log, int(found[1]))
    except BaseException:
        process.kill()
        process.wait()
        raise


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers; all are gone after the test."""
    started: list[Web] = []

    def run(*flags: str, program: Sequence[str] = ("-m", "jobs"), **environment: str) -> Web:
        started.append(launch(tmp_path / f"web-{len(started)}.log", *flags, program=program, **environment))
        return started[-1]

    yield run
    for web in started:
        web.process.kill()
        web.process.wait()
