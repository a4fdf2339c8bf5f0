"""Servers to attack, one for many tests, and requests as an attacker words them, byte for byte where need be."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from http.cookies import SimpleCookie
from itertools import count
from pathlib import Path

import pytest

from jobs import Client
from jobs.settings import Settings
from tests.web.conftest import TOKEN, Answer, Web, launch

BEARER = {"Authorization": f"Bearer {TOKEN}"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_addresses = count(1)


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of the servers that tests share."""
    return tmp_path_factory.mktemp("shared") / "home"


@pytest.fixture(scope="session")
def guarded(shared_home: Path) -> Iterator[Web]:
    """A server with a token, and a second one for mallory."""
    secrets = {"SEQPROC_TOKEN": TOKEN, "SEQPROC_TOKENS": "mallory:secret-of-mallory"}
    with running(shared_home, "guarded", **secrets) as web:
        yield web


@pytest.fixture(scope="session")
def unguarded(shared_home: Path) -> Iterator[Web]:
    """A server without any."""
    with running(shared_home, "unguarded") as web:
        yield web


@contextmanager
def running(home: Path, name: str, program: Sequence[str] = ("-m", "jobs"), **environment: str) -> Iterator[Web]:
    """A server for more than one test."""
    with pytest.MonkeyPatch.context() as patch:  # `isolated_home` is a test's, and this is before any
        for setting in [setting for setting in os.environ if setting.startswith("SEQPROC_")]:
            patch.delenv(setting)
        web = launch(home.parent / f"{name}.log", program=program, SEQPROC_HOME=str(home), **environment)
    try:
        yield web
    finally:
        web.process.kill()
        web.process.wait()


@pytest.fixture
def client(shared_home: Path) -> Iterator[Client]:
    """The jobs of the shared servers."""
    with Client(Settings(home=shared_home)) as client:
        yield client


@pytest.fixture
def address() -> dict[str, str]:
    """The header of a proxy on this machine that tells of an address that nobody had before."""
    return {"X-Forwarded-For": f"192.0.2.{next(_addresses)}"}


def log_in(web: Web, token: str = TOKEN) -> dict[str, str]:
    """The header with a session's cookie."""
    return cookie_of(ask(web, "POST", "/login", FORM, f"token={token}"))


def ask(web: Web, method: str, path: str, headers: dict[str, str] | None = None, body: object = None) -> Answer:
    """One request on a connection of its own; redirects are not followed."""
    connection = HTTPConnection("127.0.0.1", web.port, timeout=30)
    try:
        connection.request(method, path, body=body, headers=headers or {})  # type: ignore[arg-type]
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode())
    finally:
        connection.close()


def cookie_of(answer: Answer) -> dict[str, str]:
    """The header that sends the answer's cookie back."""
    [(name, morsel)] = SimpleCookie(answer.headers["set-cookie"]).items()
    return {"Cookie": f"{name}={morsel.value}"}


def until_closed(connection: socket.socket, seconds: float = 60) -> bytes:
    """All that comes until the server closes the connection."""
    connection.settimeout(0.05)
    deadline, came = time.monotonic() + seconds, b""
    while time.monotonic() < deadline:
        try:
            data = connection.recv(65536)
        except TimeoutError:
            continue
        except ConnectionResetError:
            return came
        if not data:
            return came
        came += data
    raise AssertionError(f"still open after {seconds} s; {came!r} came")
