"""The client over HTTP when things go wrong: no server, another one, a wrong token, wires cut, files damaged."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs import Client
from jobs.errors import ResultsError, SpecError, StoreError, Unreachable, UsageError
from jobs.records import Job
from jobs.remote.cache import Cache
from jobs.remote.server import Server
from tests.house import House
from tests.unit.jobs.test_results import expected_rows
from tests.web.api.wire import Wire
from tests.web.conftest import TOKEN, Web

FIELDS: dict[str, Any] = {"model": "tiny-arithmetic", "G": 2, "shard_size": 2}


@pytest.fixture
def wire(web: Web) -> Iterator[Wire]:
    wire = Wire(web.port)
    yield wire
    wire.close()


@pytest.fixture
def wired(wire: Wire) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{wire.port}/", token=TOKEN) as client:
        yield client


class TestAddress:
    @pytest.mark.parametrize("url", ["", "host:8642", "ftp://h", "http://", "http://h:0", "http://u:p@h", "http://h:x"])
    def test_what_is_none(self, url: str) -> None:
        with pytest.raises(UsageError, match="that is no address of a server; give one like http://host:8642"):
            Client(url)

    def test_a_token_is_for_a_server(self, local: Client) -> None:
        with pytest.raises(UsageError, match="a token is for a server"):
            Client(token="x")
        with pytest.raises(UsageError, match="the token holds characters that no token has"):
            Client("http://127.0.0.1:1", token="é")

    def test_the_token_in_the_address(self, web: Web) -> None:
        with Client(f"http://127.0.0.1:{web.port}/?token={TOKEN}") as client:
            assert client.jobs() == []

    def test_there_is_no_database(self, remote: Client) -> None:
        for name in ("store", "settings"):
            with pytest.raises(UsageError, match="this client asks a server, and has no database of its own"):
                getattr(remote, name)

    def test_nobody_listens(self) -> None:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{held.getsockname()[1]}"
            with Client(url) as client, pytest.raises(Unreachable, match=rf"no server answers at {url} \(.*refused"):
                client.jobs()

    @pytest.mark.parametrize(("token", "says"), [("wrong", "does not take this token"), (None, "asks for a token")])
    def test_a_wrong_token(self, web: Web, token: str | None, says: str) -> None:
        with Client(f"http://127.0.0.1:{web.port}", token=token) as client:
            with pytest.raises(UsageError, match=says):
                client.jobs()
            with pytest.raises(UsageError, match=says):
                client.submit(**FIELDS, prompts=["a"])

    @pytest.mark.parametrize("status", [200, 404, 500])
    def test_a_server_that_is_none_of_ours(self, status: int) -> None:
        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(b"<p>hello")

            def log_message(self, *args: Any) -> None: ...

        with HTTPServer(("127.0.0.1", 0), Page) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            expected = f"is no server of this version .* answered /api/v1/jobs with status {status} and text/html"
            with Client(f"http://127.0.0.1:{server.server_port}") as client, pytest.raises(Unreachable, match=expected):
                client.jobs()
            server.shutdown()


class TestCutWires:
    def test_a_submit_whose_answer_is_lost_makes_one_job(self, wire: Wire, wired: Client, local: Client) -> None:
        wire.cuts = [0, 20]
        job = wired.submit(**FIELDS, prompts=iter(["a", "b", "c"]))
        assert wire.connections == 3
        assert job.created
        assert [handle.id for handle in local.jobs()] == [job.id]
        assert job.record.num_prompts == 3

    def test_reading_goes_on(self, wire: Wire, wired: Client, job: Job) -> None:
        wire.cuts = [0, 30]
        assert wired.get(job.id).record == job

    def test_an_answer_that_is_lost_is_not_asked_for_again_if_that_could_harm(
        self, wire: Wire, wired: Client, house: House
    ) -> None:
        job = wired.submit(**FIELDS, prompts=["a"])
        job.cancel()
        wire.cuts = [0, 0, 0, 0, 0]
        with pytest.raises(Unreachable, match="broke off"):
            job.retry()
        assert wire.cuts == [0] * 4
        assert house.store.job(job.id).state == "queued", "it was done all the same"

    def test_for_good(self, wire: Wire, wired: Client) -> None:
        wire.cuts = [0] * 10
        with pytest.raises(StoreError, match=r"the connection to http://127.0.0.1:\d+ broke off"):
            wired.jobs()

    def test_an_upload_that_breaks_off_stores_nothing(self, web: Web, local: Client) -> None:
        head = f"POST /api/v1/jobs/stream HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        for framing in ("Content-Length: 10000", "Transfer-Encoding: chunked"):
            with socket.create_connection(("127.0.0.1", web.port)) as raw:
                raw.sendall(f"{head}{framing}\r\n\r\n".encode())
                line = b'{"model": "tiny-arithmetic"}\n{"prompt": "a"}\n'
                raw.sendall(line if "Length" in framing else b"%x\r\n%s\r\n" % (len(line), line))
        assert web.get("/api/v1/jobs", Authorization=f"Bearer {TOKEN}").text == '{"items":[],"next":null}'
        assert not any("was not foreseen" in str(line) for line in web.lines())


class TestFiles:
    def test_are_fetched_one_by_one_and_once(self, remote: Client, house: House, job: Job, cache: Path) -> None:
        rows = remote.get(job.id).rows()
        next(rows)
        assert [path.suffix for path in cache.iterdir()] == [".parquet"], "the others are fetched when they are read"
        rest = list(rows)
        assert len(rest) == len(expected_rows()) - 1
        for shard in house.store.shards(job.id):
            house.paths(job).resolve(shard.file or "").unlink()
        assert list(remote.get(job.id).rows()) == expected_rows()

    def test_a_copy_that_was_damaged_here_is_fetched_again(self, remote: Client, job: Job, cache: Path) -> None:
        list(remote.get(job.id).rows())
        for path in cache.iterdir():
            path.write_bytes(path.read_bytes()[:-1])
        assert list(remote.get(job.id).rows()) == expected_rows()

    @pytest.mark.parametrize("damage", [lambda data: data[:-1] + b"!", lambda data: data[:-9], lambda data: b""])
    def test_damage_on_the_server_is_never_rows(
        self, remote: Client, house: House, job: Job, cache: Path, damage: Any
    ) -> None:
        path = house.paths(job).resolve(house.store.shard(job.id, 1).file or "")
        path.write_bytes(damage(path.read_bytes()))
        rows = remote.get(job.id).rows()
        with pytest.raises(ResultsError, match=r"files/1 did not arrive as the file that was committed"):
            list(rows)
        assert len(list(cache.iterdir())) == 1, "nothing half is left behind"
        path.unlink()
        with pytest.raises(ResultsError, match=r"\.parquet is missing: its folder was moved"):
            list(remote.get(job.id).rows())

    def test_a_wire_that_is_cut_within_a_file(self, wire: Wire, wired: Client, job: Job) -> None:
        handle = wired.get(job.id)
        files = handle.results.contents().files
        wire.cuts = [700, 700]
        assert len(list(handle.results.here(files))) == 3
        assert list(handle.rows()) == expected_rows()
        assert wire.cuts == []

    def test_the_server_names_no_file_here(self, cache: Path, house: House, job: Job) -> None:
        from dataclasses import replace

        shard = house.store.shard(job.id, 1)
        shelf = Cache(Server("http://127.0.0.1:1", None))
        assert shelf.place(replace(shard, file="../../evil")).path == cache / f"{shard.sha256}.parquet"
        for bad in ("../../evil", "", "A" * 64, f"{shard.sha256}/"):
            with pytest.raises(ResultsError, match="no digests are known"):
                shelf.place(replace(shard, sha256=bad))

    def test_what_nobody_reads_for_a_week_goes(self, remote: Client, job: Job, cache: Path) -> None:
        cache.mkdir(parents=True)
        old, new = cache / "old.parquet", cache / "new.parquet"
        for path in (old, new):
            path.write_text("")
        os.utime(old, (1, 1))
        list(remote.get(job.id).rows())
        assert (old.exists(), new.exists()) == (False, True)


def test_prompts_are_checked_before_a_byte_is_sent(wire: Wire, wired: Client) -> None:
    with pytest.raises(SpecError):
        wired.submit(**FIELDS, prompts=["a", 5])
    assert wire.asked == b""


def test_the_users_settings_and_files_stay_here(wire: Wire, wired: Client, tmp_path: Path) -> None:
    path = tmp_path / "secret-name.jsonl"
    path.write_text('{"prompt": "a", "note": "secret-note"}\n')
    job = wired.submit(**FIELDS, file=str(path))
    assert job.record.spec["file"] == "-"
    assert not re.search(rb"secret-na|secret-no", wire.asked)


def test_memory_is_bounded(remote: Client, local: Client) -> None:
    import tracemalloc

    text = "x" * 1000
    make = partial(remote.submit, **FIELDS | {"shard_size": 1000})
    make(prompts=[text])
    tracemalloc.start()
    job = make(prompts=(f"{n} {text}" for n in range(30_000)))  # 30 MB
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000
    assert local.get(job.id).record.num_prompts == 30_000
