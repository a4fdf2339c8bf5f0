"""Rows as shards are done: by the local client and over HTTP, each row once, whatever is cut."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from jobs import Client
from jobs.errors import Incomplete, ResultsError, UsageError
from jobs.jsonl import finite
from jobs.records import Job
from tests.house import House
from tests.unit.jobs.test_results import expected_rows
from tests.web.api.wire import Wire
from tests.web.conftest import TOKEN, Web
from webui.api.stream import AT_ONCE

PROMPTS = [f"p{i}" for i in range(8)]


def bare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "cursor"} for row in rows]


def names(rows: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(row["prompt_index"], row["sample_index"]) for row in rows]


def out_of_order(house: House) -> Job:
    """Four shards of two prompts, done in the order 1, 2, 0, 3."""
    job = house.submit(prompts=PROMPTS).job
    held = house.claim()
    assert held is not None
    house.run_one(), house.run_one()
    house.store.hand_back(held, "later")
    house.run_one(), house.run_one()
    return house.store.job(job.id)


IN_ORDER = [(p, g) for p in (2, 3, 4, 5, 0, 1, 6, 7) for g in range(2)]


class TestOrder:
    def test_every_row_once_as_shards_were_done(self, client: Client, house: House) -> None:
        job = client.get(out_of_order(house).id)
        rows = list(job.stream())
        assert names(rows) == IN_ORDER
        assert sorted(bare(rows), key=lambda row: (row["prompt_index"], row["sample_index"])) == list(job.rows())

    def test_values_are_those_of_rows(self, client: Client, job: Job) -> None:
        assert bare(list(client.get(job.id).stream())) == expected_rows(), "−inf as well"
        assert [error["prompt_index"] for error in client.get(job.id).errors()] == [2]

    def test_it_goes_on_behind_any_cursor(self, client: Client, house: House) -> None:
        job = client.get(out_of_order(house).id)
        rows = list(job.stream())
        for number, row in enumerate(rows, start=1):
            assert list(job.stream(after=row["cursor"])) == rows[number:]

    def test_what_is_no_cursor(self, client: Client, job: Job, house: House) -> None:
        other = house.finish(house.submit(prompts=["a"]).job)
        cursor = next(client.get(other.id).stream())["cursor"]
        with pytest.raises(UsageError, match=f"the cursor is one of job {other.id}, not of {job.id}"):
            next(client.get(job.id).stream(after=cursor))
        for text in ("", "x", "WzEsMl0", cursor[:-3]):
            with pytest.raises(UsageError, match="the cursor is none of ours"):
                next(client.get(job.id).stream(after=text))


class TestWhileItRuns:
    def test_rows_come_before_the_job_has_ended(self, client: Client, house: House) -> None:
        job = house.submit(prompts=PROMPTS).job
        house.run_one()
        rows = client.get(job.id).stream(start_worker=False)
        seen = [next(rows) for _ in range(4)]
        assert not house.store.job(job.id).state.ended
        thread = threading.Timer(0.6, house.finish, [job])
        thread.start()
        seen += rows
        thread.join()
        assert names(seen) == [(p, g) for p in range(8) for g in range(2)]

    def test_a_retry_brings_what_was_missing_behind_the_cursor(self, client: Client, house: House) -> None:
        job = house.submit(prompts=PROMPTS).job
        for _ in range(3):  # the first shard, to its limit
            claim = house.claim()
            assert claim is not None
            house.store.fail(claim, "boom", limit=3)
        house.finish(job)
        rows = []
        with pytest.raises(
            Incomplete, match=r"failed \(shard 0: boom\): 1 shard of 4 will not come, prompts 0–1\."
        ) as e:
            for row in client.get(job.id).stream():
                rows.append(row)
        assert names(rows) == [(p, g) for p in range(2, 8) for g in range(2)], "all that is done was given before"
        assert e.value.cursor == rows[-1]["cursor"] and rows[-1]["cursor"] in str(e.value)
        house.store.retry(job.id)
        house.finish(job)
        rest = list(client.get(job.id).stream(after=e.value.cursor))
        assert names(rest) == [(p, g) for p in range(2) for g in range(2)]
        assert list(client.get(job.id).stream()) == rows + rest, "what was read has not changed"

    def test_a_cancelled_job(self, client: Client, house: House) -> None:
        job = house.submit(prompts=PROMPTS).job
        house.run_one()
        house.store.cancel(job.id)
        rows = client.get(job.id).stream()
        assert names([next(rows) for _ in range(4)]) == [(0, 0), (0, 1), (1, 0), (1, 1)]
        with pytest.raises(Incomplete, match=r"cancelled: 3 shards of 4 will not come, prompts 2–3, 4–5, 6–7\. All"):
            next(rows)

    def test_a_missing_file_is_said(self, local: Client, house: House, job: Job) -> None:
        shard = house.store.shards(job.id)[1]
        house.paths(job).resolve(shard.file or "").unlink()
        rows = local.get(job.id).stream()
        assert len([next(rows) for _ in range(4)]) == 4
        with pytest.raises(ResultsError, match="is missing"):
            next(rows)


class TestLines:
    """`GET /api/v1/jobs/JOB/stream`, for whoever has no client of ours."""

    def test_rows_and_the_end(self, web: Web, house: House) -> None:
        job = out_of_order(house)
        lines = list(ask(web.port, job.id))
        assert names(lines[:-1]) == IN_ORDER
        assert lines[-1] == {"end": {"state": "succeeded", "missing": None}}
        assert list(ask(web.port, job.id, f"?after={lines[6]['cursor']}")) == lines[7:]

    def test_a_silent_job_is_heard(self, web: Web, house: House) -> None:
        job = house.submit(prompts=PROMPTS).job
        connection = HTTPConnection("127.0.0.1", web.port, timeout=30)
        connection.request("GET", f"/api/v1/jobs/{job.id}/stream", headers={"Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        assert answer.readline() == b"\n", "a heartbeat"
        house.run_one()
        assert json.loads(answer.readline())["prompt_index"] == 0
        house.store.cancel(job.id)
        *_, last = (json.loads(line) for line in answer if line.strip())
        assert last["end"]["state"] == "cancelled" and "3 shards of 4 will not come" in last["end"]["missing"]
        connection.close()

    @pytest.mark.parametrize(("query", "status"), [("?after=x", 400), ("?after=", 400)])
    def test_what_is_no_cursor(self, web: Web, job: Job, query: str, status: int) -> None:
        answer = web.get(f"/api/v1/jobs/{job.id}/stream{query}", Authorization=f"Bearer {TOKEN}")
        assert (answer.status, "the cursor is none of ours" in answer.text) == (status, True)

    def test_so_many_at_once_and_no_more(self, web: Web, house: House) -> None:
        """Each goes on for as long as the job; one that is closed makes room."""
        job = house.submit(prompts=PROMPTS).job
        house.run_one()
        connections = [HTTPConnection("127.0.0.1", web.port, timeout=30) for _ in range(AT_ONCE + 1)]
        path, headers = f"/api/v1/jobs/{job.id}/stream", {"Authorization": f"Bearer {TOKEN}"}
        *open_ones, last = connections
        for connection in open_ones:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            assert answer.status == 200 and json.loads(answer.readline())["prompt_index"] == 0
        last.request("GET", path, headers=headers)
        refused = last.getresponse()
        assert (refused.status, refused.getheader("Retry-After")) == (503, "5")
        assert "Too many streams are under way" in json.loads(refused.read())["error"]["message"]
        open_ones[0].sock.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + 30
        while refused.status == 503:
            assert time.monotonic() < deadline
            time.sleep(0.1)
            last.request("GET", path, headers=headers)
            refused = last.getresponse()
            if refused.status == 503:
                refused.read()
        assert json.loads(refused.readline())["prompt_index"] == 0
        for connection in connections:
            connection.close()


class TestRewards:
    """Columns beside the shards come in a stream as in `rows`, whoever reads it."""

    def test_every_reader_sees_the_same(self, local: Client, remote: Client, web: Web, house: House) -> None:
        job = out_of_order(house)
        local.get(job.id).reward(lambda row: None if row["prompt_index"] == 3 else row["sample_index"], name="mine")
        rows = list(local.get(job.id).stream())
        assert names(rows) == IN_ORDER
        assert [row["reward_mine"] for row in rows] == [None if p == 3 else g for p, g in IN_ORDER]
        assert list(remote.get(job.id).stream()) == rows
        assert list(ask(web.port, job.id))[:-1] == [finite(row) for row in rows]

    def test_one_that_only_some_shards_have(self, local: Client, remote: Client, web: Web, house: House) -> None:
        """The column is in every row from the moment that the job has one, also of the job's own rewards to come."""
        job = house.submit(prompts=PROMPTS, rewards=["tag_format"]).job
        house.run_one()
        local.get(job.id).reward(lambda row: 1.0, name="mine", partial=True)
        house.finish(job)
        rows = list(local.get(job.id).stream())
        assert [(row["reward_tag_format"], row["reward_mine"]) for row in rows] == [(None, 1.0)] * 4 + [
            (None, None)
        ] * 12
        assert list(remote.get(job.id).stream()) == rows
        assert list(ask(web.port, job.id))[:-1] == [finite(row) for row in rows]


def ask(port: int, job: str, query: str = "") -> Iterator[dict[str, Any]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/api/v1/jobs/{job}/stream{query}", headers={"Authorization": f"Bearer {TOKEN}"})
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Content-Type")) == (200, "application/x-ndjson")
    for line in answer:
        yield json.loads(line)
    connection.close()


def test_a_wire_that_is_cut_again_and_again(web: Web, house: House) -> None:
    """Whatever is cut off, each row comes once: the client asks again for what it has not got."""
    job = out_of_order(house)
    wire = Wire(web.port)
    with Client(f"http://127.0.0.1:{wire.port}", token=TOKEN) as client:
        handle = client.get(job.id)
        wire.cuts += [0, 900, 0, 0, 0, 40, 2000, 0]
        assert names(list(handle.stream())) == IN_ORDER
        assert not wire.cuts and wire.connections > 8
    wire.close()
