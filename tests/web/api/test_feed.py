"""Prompts as a stream: by the local client and over HTTP, and over a wire that is cut."""

from __future__ import annotations

import json
import time
from http.client import HTTPConnection
from typing import Any

import pytest

from jobs import Client
from jobs.errors import JobNotFound, SpecError, UsageError, WrongState
from jobs.snapshot import read_all
from tests.house import House
from tests.web.api.wire import Wire
from tests.web.conftest import TOKEN, Web

SPEC: dict[str, Any] = {"model": "tiny-arithmetic", "G": 2, "seed": 1, "shard_size": 2}
ROWS: list[Any] = ["a", {"prompt": "b", "custom_id": "mine", "answer": "4"}, [1, 2], {"promt": "c"}, "d"]


def errors(house: House, job_id: str) -> list[str | None]:
    job = house.store.job(job_id)
    return [row.error for row in read_all(house.paths(job), house.store.segments(job_id))]


def until_there(house: House, job_id: str, prompts: int) -> None:
    deadline = time.monotonic() + 30
    while house.store.job(job_id).num_prompts < prompts:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_is_the_same_job_both_ways(client: Client, house: House) -> None:
    with client.feed(**SPEC, name="fed", labels={"run": "7"}) as feed:
        for row in ROWS:
            feed.add(row)
    job = house.store.job(feed.job.id)
    assert (job.num_prompts, job.num_sequences, job.sealed, job.truncated) == (5, 10, True, None)
    assert (job.name, job.labels, feed.job.record) == ("fed", {"run": "7"}, job)
    found = errors(house, job.id)
    assert [error is None for error in found] == [True, True, True, False, True]
    assert (found[3] or "").startswith("prompts[3] give exactly one of prompt, messages, prompt_token_ids")
    sealed = client.get(job.id)
    assert sealed.manifest()["snapshot"]["digest"] == job.snapshot_digest != ""
    assert sealed.progress.sealed


def test_read_while_it_is_fed(client: Client, house: House) -> None:
    with client.feed(**SPEC) as feed:
        feed.add("a"), feed.add("b")
        until_there(house, feed.job.id, 2)
        assert not client.get(feed.job.id).progress.sealed
        house.run_one()
        rows = client.get(feed.job.id).stream(start_worker=False)
        assert [next(rows)["prompt_index"] for _ in range(4)] == [0, 0, 1, 1]
        feed.add("c")
    house.finish(feed.job.record)
    assert [row["prompt_index"] for row in rows] == [2, 2]


def test_what_goes_wrong_in_the_block_truncates(client: Client, house: House) -> None:
    with pytest.raises(RuntimeError), client.feed(**SPEC) as feed:
        feed.add("a")
        raise RuntimeError("broke")
    assert house.store.job(feed.job.id).truncated == "its prompts broke off after 1 prompt: RuntimeError: broke"


@pytest.mark.parametrize("why", ["long\n" * 2_000, "half \ud800 a character", "NUL \0 and \x1b[31m red"])
def test_whatever_the_reason_is_it_can_be_said(client: Client, house: House, why: str) -> None:
    with pytest.raises(RuntimeError), client.feed(**SPEC) as feed:
        feed.add("a")
        raise RuntimeError(why)
    truncated = house.store.job(feed.job.id).truncated or ""
    assert truncated.startswith(f"its prompts broke off after 1 prompt: RuntimeError: {why[:4]}")
    assert len(truncated) < 600 and truncated.isprintable()


def test_a_cancel_from_elsewhere(client: Client, house: House) -> None:
    with (
        pytest.raises(WrongState, match=r"takes no more prompts: its .* the job was cancelled"),
        client.feed(**SPEC) as feed,
    ):
        house.store.cancel(feed.job.id)
        for _ in range(100_000_000):
            feed.add("a")


def test_what_cannot_be_opened(client: Client, local: Client) -> None:
    with pytest.raises(SpecError, match="idempotency_key: stands for a whole set of prompts"):
        client.feed(**SPEC, idempotency_key="k")
    with pytest.raises(SpecError, match="prompts come from one place"):
        client.feed(**SPEC, dataset="arithmetic_r1_template")
    assert local.jobs() == []


def test_a_piece_in_many_bodies(remote: Client, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.remote.upload._PIECE", 100)
    with remote.feed(**SPEC) as feed:
        for number in range(50):
            feed.add(f"p{number}")
    assert house.store.segments(feed.job.id) > 8
    job = house.store.job(feed.job.id)
    assert [row.prompt for row in read_all(house.paths(job), house.store.segments(job.id))] == [
        f"p{number}" for number in range(50)
    ]


def test_a_wire_that_is_cut_doubles_nothing(web: Web, house: House) -> None:
    wire = Wire(web.port)
    with Client(f"http://127.0.0.1:{wire.port}", token=TOKEN) as client:
        with client.feed(**SPEC) as feed:
            for number in range(40):
                wire.cuts += [0] * (number % 3 == 0)
                feed.add({"prompt": f"p{number}", "custom_id": f"c{number}"})
                time.sleep(0.02)
        assert not wire.cuts
    wire.close()
    job = house.store.job(feed.job.id)
    rows = list(read_all(house.paths(job), house.store.segments(job.id)))
    assert [(row.prompt, row.error) for row in rows] == [(f"p{number}", None) for number in range(40)]
    assert job.sealed


class TestRoutes:
    """For whoever has no client of ours."""

    def post(self, web: Web, path: str, body: bytes, token: str = TOKEN) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", web.port, timeout=30)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("POST", f"/api/v1{path}", body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())

    def test_by_hand(self, web: Web, house: House) -> None:
        status, opened = self.post(web, "/jobs/feed", json.dumps(SPEC).encode())
        job = opened["job"]["id"]
        assert (status, opened["job"]["sealed"]) == (201, False)
        lines = b'{"prompt": "a"}\n\nnonsense\n{"error": "x:7: mine"}\n{"prompt": "\xff"}\n'
        lines += b'{"prompt": "b", "custom_id": "0"}'
        for _ in range(2):
            status, after = self.post(web, f"/jobs/{job}/prompts?first=0", lines)
            assert (status, after["num_prompts"]) == (200, 5)
        assert errors(house, job) == [
            None,
            "prompts[1] is no JSON",
            "x:7: mine",
            "prompts[3] is no JSON",
            "custom_id: '0' stands already before it; give each its own",
        ]
        status, refused = self.post(web, f"/jobs/{job}/prompts?first=3", b'{"prompt": "c"}\n')
        assert (status, refused["error"]["code"]) == (409, "WrongState")
        assert "has 5 prompts, so that prompt 3 is not the next one" in refused["error"]["message"]
        assert self.post(web, f"/jobs/{job}/prompts?first=5", b"")[0] == 200
        for why in ("&truncated=first", "&truncated=second"):
            assert self.post(web, f"/jobs/{job}/seal?{why}", b"")[1]["truncated"] == "first"
        status, refused = self.post(web, f"/jobs/{job}/prompts?first=5", b'{"prompt": "c"}\n')
        assert (status, refused["error"]["message"]) == (409, f"job {job} takes no more prompts: first")

    def test_what_is_not_there(self, web: Web) -> None:
        assert self.post(web, "/jobs/none/prompts?first=0", b"")[0] == 404
        assert self.post(web, "/jobs/none/seal", b"")[0] == 404
        assert self.post(web, "/jobs/feed", json.dumps(SPEC | {"file": "/etc/passwd"}).encode())[0] == 422
        with pytest.raises(JobNotFound), Client(f"http://127.0.0.1:{web.port}", token=TOKEN) as client:
            client.get("none")


def test_a_wrong_token(web: Web) -> None:
    with pytest.raises(UsageError), Client(f"http://127.0.0.1:{web.port}", token="wrong") as client:
        client.feed(**SPEC)
