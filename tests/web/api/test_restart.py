"""A real server that goes in the middle of streams, both ways, and comes again: the clients go on, each row once."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from jobs import Client
from jobs.settings import Settings
from jobs.snapshot import read_all
from tests.house import House
from tests.web.conftest import TOKEN, Start, Web

SPEC: dict[str, Any] = {"model": "tiny-arithmetic", "G": 2, "seed": 1, "shard_size": 2}


@pytest.fixture
def house(isolated_home: Path, migrated_file: Path) -> Iterator[House]:
    isolated_home.mkdir(exist_ok=True)
    shutil.copy(migrated_file, isolated_home)
    with Client(Settings(home=isolated_home)) as local:
        yield House(local.settings, local.store)


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines(port: int, job: str, query: str = "") -> HTTPResponse:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", f"/api/v1/jobs/{job}/stream{query}", headers={"Authorization": f"Bearer {TOKEN}"})
    return connection.getresponse()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_it_goes_in_the_middle_and_comes_again(start: Start, house: House, end: signal.Signals) -> None:
    def serve(port: int = 0) -> Web:
        return start("--port", str(port), SEQPROC_HOME=str(house.settings.home), SEQPROC_TOKEN=TOKEN)

    web = serve()
    with Client(f"http://127.0.0.1:{web.port}", token=TOKEN) as client:
        feed = client.feed(**SPEC)
        for number in range(4):
            feed.add({"prompt": f"p{number}", "custom_id": f"c{number}"})
        until(lambda: house.store.job(feed.job.id).num_prompts == 4)
        house.run_one()
        rows = client.get(feed.job.id).stream()
        read = [next(rows) for _ in range(3)]
        by_hand = lines(web.port, feed.job.id)
        heard = [json.loads(by_hand.readline()) for _ in range(4)]
        web.process.send_signal(end)
        feed.add({"prompt": "p4", "custom_id": "c4"})
        feed.add({"prompt": "twin", "custom_id": "c1"})  # of one that the next server has not seen
        with suppress(IncompleteRead, ConnectionError):
            assert set(by_hand) <= {b"\n"}, "it is cut without a last line"
        web.process.wait(30)
        house.run_one()
        time.sleep(1.5)  # the feed has found nobody
        serve(web.port)
        feed.add({"prompt": "p6"})
        feed.end()
        job = house.finish(feed.job.record)
        read += rows
    stored = list(read_all(house.paths(job), house.store.segments(job.id)))
    assert [row.prompt for row in stored if row.error is None] == ["p0", "p1", "p2", "p3", "p4", "p6"]
    assert [row.error for row in stored if row.error] == ["custom_id: 'c1' stands already before it; give each its own"]
    expected = [(p, g) for p in range(7) for g in range(2) if p != 5]
    in_order = [(row["prompt_index"], row["sample_index"]) for row in read]
    assert sorted(in_order) == expected == in_order
    *rest, last = map(json.loads, lines(web.port, job.id, f"?after={heard[-1]['cursor']}"))
    assert [(row["prompt_index"], row["sample_index"]) for row in heard + rest] == expected
    assert last == {"end": {"state": "succeeded", "missing": None}}
