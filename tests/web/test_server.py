"""The server as it is run: who is let in, what it says of its health, and how it leaves."""

from __future__ import annotations

import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobs import Client
from jobs.settings import Settings
from tests.web.conftest import TOKEN, Start
from webui.command import listen


def test_on_loopback(start: Start, isolated_home: Path) -> None:
    with Client() as client:
        client.submit(model="tiny-arithmetic", prompts=["1+1="] * 5, shard_size=2)
    web = start()
    assert (web.get("/healthz").status, web.get("/healthz").text) == (200, "ok\n")
    assert (web.get("/readyz").status, web.get("/readyz").text) == (200, "ready\n")
    metrics = web.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(metrics.text)}
    [depth] = families["seqproc_queue_depth"].samples
    assert (depth.labels, depth.value) == ({"queue": "default"}, 3)
    for path in ("/redoc", "/nothing"):
        assert web.get(path).status == 404
    for host in ("127.0.0.1", "localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:8642", "127.9.9.9"):
        assert web.get("/healthz", Host=host).status == 200, host
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "10.0.0.5", "[fe80::1]", ""):
        for path in ("/healthz", "/metrics"):
            assert web.get(path, Host=host).status == 400, host
    web.process.send_signal(signal.SIGTERM)
    assert web.process.wait(30) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    lines = web.lines()
    assert all({"time", "level", "web", "message"} <= line.keys() for line in lines)
    assert any("Application shutdown complete" in str(line["message"]) for line in lines), "uvicorn's own words"


def test_a_token_is_asked_for(start: Start) -> None:
    web = start("--host", "0.0.0.0", SEQPROC_TOKEN=TOKEN)
    for path in ("/healthz", "/readyz"):
        assert web.get(path, Host="any.example").status == 200
    for path in ("/", "/metrics", "/docs", "/nothing", "/healthz/", "//healthz", "/%2e/healthz"):
        refused = web.get(path)
        assert refused.status == 401, path
        assert refused.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in refused.text
    for wrong in ("", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ", "Bearer \xff"):
        assert web.get("/metrics", Authorization=wrong).status == 401, wrong
    for right in (f"Bearer {TOKEN}", f"bearer {TOKEN}"):
        assert web.get("/metrics", Authorization=right).status == 200
    assert web.get("/nothing", Authorization=f"Bearer {TOKEN}").status == 404
    assert web.get(f"/metrics?token={TOKEN}").status == 401
    assert TOKEN not in web.log.read_text()


def refused(*flags: str) -> tuple[int, str]:
    """Exit code and stderr of a server that does not start."""
    command = [sys.executable, "-P", "-m", "jobs", "web", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_any_other_address_needs_a_token(host: str) -> None:
    code, said = refused("--host", host)
    assert code == 2
    assert "SEQPROC_TOKEN is not set: set it to a long random text" in said
    assert said.count("\n") == 1


def test_a_port_that_is_taken_and_a_host_that_is_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        code, said = refused("--port", str(port))
    assert (code, said) == (
        1,
        f"Error: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --port\n",
    )
    code, said = refused("--host", "no-such-host.invalid")
    assert code == 2
    assert "is no address of this machine" in said


def test_not_ready_without_a_database_and_ready_when_it_comes_back(start: Start, isolated_home: Path) -> None:
    isolated_home.mkdir()
    database = isolated_home / "seqproc.db"
    database.write_text("this is no database, and secret-place is its name")
    web = start()
    assert web.get("/healthz").status == 200
    assert (web.get("/readyz").status, web.get("/readyz").text) == (503, "not ready, see the log\n")
    assert web.get("/metrics").status == 503
    assert any("is not an SQLite database" in str(line["message"]) for line in web.lines())
    database.unlink()
    assert web.get("/readyz").status == 200
    with closing(sqlite3.connect(database)) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
        raw.commit()
    assert web.get("/readyz").status == 503
    assert any("schema 9999" in str(line["message"]) for line in web.lines())


def test_a_database_server_that_is_away(start: Start) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening
        url = f"postgresql://seqproc:hunter2@127.0.0.1:{held.getsockname()[1]}/d"
        web = start(SEQPROC_DATABASE_URL=url)
        assert web.get("/healthz").status == 200
        assert web.get("/readyz").status == 503
        assert web.get("/metrics").status == 503
    assert "hunter2" not in web.log.read_text()


def test_no_part_of_an_answer_waits_for_an_acknowledgement(isolated_home: Path) -> None:
    with listen(Settings(), "127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
