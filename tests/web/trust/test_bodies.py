"""Bodies too long and too slow, heads that never end, answers that nobody takes: nothing of it holds the server up."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.web.conftest import TOKEN, Web
from tests.web.trust.conftest import BEARER, FORM, ask, running, until_closed

IMPATIENT = (
    "from webui import body, connection; body.IDLE_SECONDS = 0.5; "
    "connection.HEAD_SECONDS = 2.0; connection.STALLED_SECONDS = 1.0; "
    "from jobs.cli import main; main()"
)
MOST = 100_000
_LOGIN = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n"


@pytest.fixture(scope="module")
def web(shared_home: Path) -> Iterator[Web]:
    with running(shared_home, "bodies", SEQPROC_TOKEN=TOKEN, SEQPROC_WEB_MAX_BODY=str(MOST)) as web:
        yield web


@pytest.fixture(scope="module")
def impatient(shared_home: Path) -> Iterator[Web]:
    with running(shared_home, "impatient", program=("-c", IMPATIENT), SEQPROC_TOKEN=TOKEN) as web:
        yield web


@pytest.fixture
def connect() -> Iterator[Callable[[Web], socket.socket]]:
    opened: list[socket.socket] = []

    def connect(web: Web) -> socket.socket:
        opened.append(socket.create_connection(("127.0.0.1", web.port)))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def chunks(total: int, size: int = 10_000) -> Iterator[bytes]:
    for _ in range(total // size):
        yield b"a" * size


class TestTooLong:
    @pytest.mark.parametrize(
        ("path", "length"), [("/api/v1/jobs/stream", MOST + 1), ("/submit", MOST + 1), ("/api/v1/jobs", 2**25 + 1)]
    )
    def test_what_says_so_is_refused_unread(
        self, web: Web, connect: Callable[[Web], socket.socket], path: str, length: int
    ) -> None:
        connection = connect(web)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nAuthorization: Bearer {TOKEN}\r\n"
        )
        connection.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        answer = until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"100 Continue" not in answer
        assert b"connection: close" in answer.lower()

    def test_what_does_not_say_so_is_cut_off(self, web: Web) -> None:
        answer = ask(web, "POST", "/login", FORM, chunks(MOST))
        assert answer.status == 413
        assert ask(web, "GET", "/metrics", BEARER).status == 200

    def test_the_sentence_under_the_api(self, web: Web) -> None:
        answer = ask(web, "POST", "/api/v1/jobs/stream", BEARER, b"a" * (MOST + 1))
        assert answer.status == 413
        assert "The body is too long: here it may have at most 100.0 kB." in answer.text
        assert answer.headers["content-type"] == "application/json"

    def test_who_is_not_let_in_is_told_although_he_goes_on_sending(self, web: Web) -> None:
        for path in ("/api/v1/jobs/stream", "/api/v1/jobs"):
            answer = ask(web, "POST", path, {}, chunks(3_000_000))
            assert (answer.status, answer.headers["connection"]) == (401, "close")


class TestTooSlow:
    def test_a_body_that_stops(self, impatient: Web, connect: Callable[[Web], socket.socket]) -> None:
        connection = connect(impatient)
        connection.sendall(_LOGIN + b"Content-Length: 100\r\n\r\ntoken=")
        assert until_closed(connection).startswith(b"HTTP/1.1 408 ")

    def test_a_body_that_drips(self, impatient: Web, connect: Callable[[Web], socket.socket]) -> None:
        connection = connect(impatient)
        connection.sendall(_LOGIN + b"Content-Length: 1000\r\n\r\n")
        assert _drip(connection, b"a").startswith(b"HTTP/1.1 408 ")

    @pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\n"])
    def test_a_head_that_does_not_come(
        self, impatient: Web, connect: Callable[[Web], socket.socket], begun: bytes
    ) -> None:
        connection = connect(impatient)
        connection.sendall(begun)
        assert until_closed(connection) == b""

    def test_a_head_that_drips_after_a_first_request(
        self, impatient: Web, connect: Callable[[Web], socket.socket]
    ) -> None:
        connection = connect(impatient)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert _drip(connection, b"X").startswith(b"HTTP/1.1 200 ")

    def test_a_request_after_a_request_is_in_time(self, impatient: Web) -> None:
        connection = HTTPConnection("127.0.0.1", impatient.port, timeout=30)
        connection.connect()
        first = connection.sock
        for _ in range(4):
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b"ok\n"
            assert connection.sock is first
            time.sleep(0.8)
        connection.close()


def test_many_idle_connections_keep_nobody_out(impatient: Web, connect: Callable[[Web], socket.socket]) -> None:
    idle = [connect(impatient) for _ in range(300)]
    assert ask(impatient, "GET", "/healthz").status == 200
    assert all(until_closed(connection) == b"" for connection in idle)


def _drip(connection: socket.socket, byte: bytes) -> bytes:
    """A byte now and then, until the server closes; what it said."""
    connection.settimeout(0.05)
    came, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            connection.sendall(byte)
            data = connection.recv(65536)
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return came
        if not data:
            return came
        came += data
    raise AssertionError("still open after a minute")
