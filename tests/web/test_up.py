"""`seqproc up`: page and workers together, kept running, ended together. Real processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from typer.testing import CliRunner

from jobs import Client
from jobs.cli.app import app
from webui.up import kept_token


@dataclass
class Up:
    """One `seqproc up`."""

    process: subprocess.Popen[str]
    page: str  # its address, with the token
    said: Path  # stderr

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str]]:
        place = urlsplit(self.page)
        connection = HTTPConnection(str(place.hostname), place.port, timeout=30)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders())
        finally:
            connection.close()

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()


Start = Callable[..., Up]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(*flags: str, **environment: str) -> Up:
        said = tmp_path / f"up-{len(started)}.log"
        with said.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "jobs", "up", "--port", "0", *flags],
                env={**os.environ, "SEQPROC_POLL_SECONDS": "0.1", **environment},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        started.append(process)
        assert process.stdout is not None
        page = process.stdout.readline().strip()
        assert page, said.read_text()
        return Up(process, page, said)

    yield run
    for process in started:
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.kill()
        process.kill()
        process.communicate()


def until(what: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.05)


def gone(found: list[psutil.Process]) -> bool:
    return all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in found)


def failed(*flags: str) -> tuple[int, str]:
    command = [sys.executable, "-P", "-m", "jobs", "up", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr


def test_a_job_runs_and_the_page_is_its_owners_alone(start: Start, isolated_home: Path) -> None:
    up = start()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", up.page)
    token = up.page.partition("token=")[2]
    status, headers = up.get(f"/?token={token}", Accept="text/html")
    assert (status, headers["location"]) == (303, "/")
    assert up.get("/metrics", Cookie=headers["set-cookie"].partition(";")[0])[0] == 200
    assert up.get("/metrics")[0] == 401, "others on this machine reach loopback too"
    kept = isolated_home / "token"
    assert (stat.S_IMODE(kept.stat().st_mode), kept.read_text().strip()) == (0o600, token)
    assert failed("--port", "0") == (
        1,
        f"Error: `seqproc up` runs on {isolated_home} already, its page is at {up.page.partition('/?')[0]}: end it "
        "there with Ctrl-C, or give this one another home (SEQPROC_HOME)\n",
    )
    with Client() as client:
        job = client.submit(model="tiny-arithmetic", prompts=["2+3="], G=1, max_new_tokens=4)
        assert job.wait(timeout=120, start_worker=False).state == "succeeded"
        until(lambda: len(client.store.workers()) == 1)
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(60) == 0
        assert client.store.workers() == [], "the worker left in order"
    assert token not in up.said.read_text()


def test_workers_that_die_are_started_again(start: Start) -> None:
    up = start("--workers", "2")
    with Client() as client:
        until(lambda: len(client.store.workers()) == 2)
        victim = client.store.workers()[0]
        os.kill(victim.pid, signal.SIGKILL)
        until(lambda: len({worker.id for worker in client.store.workers()} - {victim.id}) == 2)
        until(lambda: "ended by signal 9; starting it again in 1 s" in up.said.read_text())
        os.kill(next(w.pid for w in client.store.workers() if w.id != victim.id), signal.SIGTERM)
        until(lambda: "ended with exit code 0; starting it again" in up.said.read_text())


def test_workers_do_not_know_the_token(start: Start) -> None:
    up = start(SEQPROC_TOKEN="tok & 0123456789", SEQPROC_TOKENS="alice:secret-of-alice")
    assert up.page.endswith("/?token=tok%20%26%200123456789")
    until(lambda: len(up.workers) == 1)
    environment = up.workers[0].environ()
    assert not {"SEQPROC_TOKEN", "SEQPROC_TOKENS"} & set(environment)
    assert not [value for value in environment.values() if "0123456789" in value]


def test_a_second_signal_ends_all_at_once(start: Start) -> None:
    up = start()
    with Client() as client:
        until(lambda: len(client.store.workers()) == 1)
        children = up.workers
        os.kill(children[0].pid, signal.SIGSTOP)  # which cannot leave in order
        up.process.send_signal(signal.SIGINT)
        until(lambda: "the page is closed" in up.said.read_text())
        up.process.send_signal(signal.SIGINT)
        assert up.process.wait(60) == 128 + signal.SIGINT
        assert gone(children)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_no_worker_outlives_a_killed_up(start: Start) -> None:
    up = start()
    with Client() as client:
        until(lambda: len(client.store.workers()) == 1)
    orphans = up.workers
    up.process.kill()
    until(lambda: gone(orphans))
    start()  # the lock of the dead holds nobody up


def test_what_cannot_be(isolated_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        code, said = failed("--port", str(held.getsockname()[1]))
    assert (code, "Address already in use; choose another with --port" in said) == (1, True)
    assert failed("--workers", "2", "--gpus", "all")[0] == 2
    (isolated_home / "seqproc.db").write_text("this is no database")
    code, said = failed("--port", "0")
    assert (code, "is not an SQLite database" in said) == (1, True)


def test_a_token_that_others_may_have_read_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "token"
    made = kept_token(path).get_secret_value()
    assert kept_token(path).get_secret_value() == made
    path.chmod(0o640)
    assert kept_token(path).get_secret_value() != made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_demo_ends_by_saying_how_to_open_the_page() -> None:
    last = (Path(__file__).parents[2] / "examples" / "demo.sh").read_text().splitlines()[-1]
    words = re.search(r"seqproc (up --\w+)", last)
    assert words is not None
    assert CliRunner().invoke(app, [*words[1].split(), "--help"]).exit_code == 0
