"""The HTTP API by itself, as curl sees it: statuses, pages, ranges, rows in any order, and its description."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from jobs import Client
from jobs.errors import StoreError
from jobs.files import sha256_of
from jobs.jsonl import line
from jobs.records import Job
from jobs.shard_files import write_attempt
from jobs.snapshot import SnapshotRow
from jobs.states import JobState
from tests.house import House
from tests.rows import made_row
from tests.unit.jobs.test_results import ERRORS, expected_rows
from webui import caller
from webui.app import create_app
from webui.caller import Caller

SORTS = ["length", *(f"{of}_{how}" for of in ("logprobs", "entropies", "sampling_logprobs") for how in ("sum", "mean"))]
SPEC: dict[str, Any] = {"model": "tiny-arithmetic", "G": 2, "seed": 1, "shard_size": 2}


@pytest.fixture
def api(local: Client) -> Iterator[TestClient]:
    with TestClient(create_app(local.settings, loopback=True), base_url="http://127.0.0.1/api/v1/") as client:
        yield client


def refused(answer: Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    return str(error["message"])


def pages(api: TestClient, path: str, **query: Any) -> list[list[Any]]:
    found, cursor = [], None
    while True:
        page = api.get(path, params=query | ({"cursor": cursor} if cursor else {})).json()
        found.append(page["items"])
        cursor = page["next"]
        if cursor is None:
            return found


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class TestSubmit:
    def test_a_spec_with_its_prompts(self, api: TestClient, local: Client) -> None:
        answer = api.post("jobs", json=SPEC | {"prompts": ["a", {"prompt": "b"}, "c"], "idempotency_key": "k"})
        assert answer.status_code == 201
        done = answer.json()
        assert (done["created"], done["job"]["num_prompts"], done["job"]["state"]) == (True, 3, "queued")
        assert local.get(done["job"]["id"]).record.spec == done["job"]["spec"]
        again = api.post("jobs", json=SPEC | {"prompts": ["a", "b", "c"], "idempotency_key": "k"})
        assert (again.status_code, again.json()["created"]) == (200, False)
        other = api.post("jobs", json=SPEC | {"prompts": ["z"], "idempotency_key": "k"})
        assert "which has other prompts" in refused(other, 409, "IdempotencyConflict")

    def test_lines(self, api: TestClient, house: House) -> None:
        body = lines(SPEC, {"prompt": "a"}, {"prompt": "b", "extra": 1}) + b"\n"
        answer = api.post("jobs/stream", content=body)
        assert answer.status_code == 201
        assert answer.json()["ignored_columns"] == ["extra"]
        assert house.store.job(answer.json()["job"]["id"]).num_prompts == 2
        drawn = api.post("jobs/stream", content=lines(SPEC | {"dataset": "arithmetic_r1_template", "num_prompts": 3}))
        assert drawn.json()["job"]["num_prompts"] == 3

    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            (b"", "line 1: must be the spec"),
            (b"[1]\n", "line 1: must be the spec"),
            (b"{" * 100_000 + b"\n", "line 1: must be the spec"),
            (b'"' + b"x" * 2**21 + b'"\n', "line 1: must be the spec"),
            (b"\xff\n", "line 1: must be the spec"),
            (lines(SPEC), "<stdin>: holds no rows"),
            (lines(SPEC, {"prompt": "a"}, {"promt": 1}), "<stdin>:2 give exactly one of"),
            (lines(SPEC | {"prompts": ["a"]}, {"prompt": "b"}), "prompts come from one place"),
            (lines(SPEC | {"dataset": "arithmetic_r1_template"}, {"prompt": "b"}), "prompts come from one place"),
            (lines(SPEC | {"file": "/etc/passwd"}), "file: would be a file of the server"),
            (lines(SPEC | {"chat_template_kwargs": {"a": float("nan")}}, {"prompt": "a"}), "the spec holds NaN"),
            (lines(SPEC | {"name": "\ud800"}, {"prompt": "a"}), "the spec holds NaN, an infinity or half a character"),
        ],
    )
    def test_what_is_wrong_stores_nothing(self, api: TestClient, local: Client, body: bytes, problem: str) -> None:
        for path in ("jobs/stream", "jobs/plan/stream"):
            answer = api.post(path, content=body)
            assert refused(answer, 422, "SpecError").startswith(problem)
            assert answer.json()["error"]["problems"][0].startswith(problem)
        assert local.jobs() == []

    def test_json_that_is_no_object(self, api: TestClient) -> None:
        for body in (b"[]", b"null", b"{", b""):
            assert api.post("jobs", content=body, headers={"Content-Type": "application/json"}).status_code == 422

    def test_too_many_for_one_document(self, api: TestClient) -> None:
        assert "10,001 are too many" in refused(
            api.post("jobs", json=SPEC | {"prompts": ["a"] * 10_001}), 422, "SpecError"
        )

    def test_plan(self, api: TestClient, local: Client) -> None:
        found = api.post("jobs/plan", json=SPEC | {"prompts": ["a", "b", "c"]}).json()
        assert (found["num_prompts"], found["num_sequences"], found["num_shards"]) == (3, 6, 2)
        assert "prompts" not in found["spec"]
        assert api.post("jobs/plan/stream", content=lines(SPEC, *[{"prompt": t} for t in "abc"])).json() == found | {
            "spec": found["spec"] | {"file": "-"}
        }
        assert local.jobs() == []


class TestJobs:
    def test_pages(self, api: TestClient, house: House) -> None:
        made = [house.submit(prompts=["a"], name=str(n)).job.id for n in range(5)]
        found = pages(api, "jobs", limit=2)
        assert [[job["id"] for job in page] for page in found] == [made[4:2:-1], made[2:0:-1], made[:1]]
        assert [job["id"] for job in api.get("jobs", params={"state": ["queued", "failed"]}).json()["items"]] == made[
            ::-1
        ]

    def test_counts(self, api: TestClient, house: House, local: Client) -> None:
        ids = [house.submit(prompts=["a"], queue=queue).job.id for queue in ("gpu", "gpu", "cpu")]
        local.get(ids[0]).cancel()
        counted = api.get("counts").json()
        assert counted == {"counts": dict.fromkeys(JobState, 0) | {"queued": 2, "cancelled": 1}, "at_least": []}
        assert api.get("counts?queue=gpu").json()["counts"]["queued"] == 1
        assert api.get("counts?state=queued").status_code == 422, "a filter that it does not have"

    def test_a_job_and_its_progress(self, api: TestClient, house: House) -> None:
        job = house.submit(prompts=["a", "b", "c"]).job
        house.run_one()
        found = api.get(f"jobs/{job.id}").json()
        assert (found["id"], found["spec"]["seed"], found["webhooks"]) == (job.id, 1, [])
        assert found["progress"] == api.get(f"jobs/{job.id}/progress").json()
        assert found["progress"]["sequences"] == 4
        assert [len(page) for page in pages(api, f"jobs/{job.id}/shards", limit=1)] == [1, 1, 0]
        assert [shard["index"] for shard in api.get(f"jobs/{job.id}/shards?state=pending").json()["items"]] == [1]
        assert [a["outcome"] for page in pages(api, f"jobs/{job.id}/attempts", limit=1) for a in page] == ["done"]

    def test_a_whole_id_is_asked_for(self, api: TestClient, house: House) -> None:
        job = house.submit(prompts=["a"], name="called").job
        for path in (job.id[:6], "called", "nothing"):
            assert "give the whole id" in refused(api.get(f"jobs/{path}"), 404, "JobNotFound") or path == "nothing"
            assert api.delete(f"jobs/{path}").status_code == 404
        assert api.get("find", params={"job": "called"}).json()["id"] == job.id
        for odd in ("..%2f..%2fetc", "%00", "a" * 65, "a%20b"):
            assert api.get(f"jobs/{odd}").status_code in (404, 422)

    def test_steering_is_for_the_owner_and_the_operator(self, api: TestClient, house: House) -> None:
        job = house.submit(prompts=["a"]).job  # ann's
        api.app.dependency_overrides[caller._caller] = lambda: Caller("bob", operator=False)  # type: ignore[attr-defined]
        for method, path in (("POST", "cancel"), ("POST", "retry"), ("DELETE", "")):
            said = refused(api.request(method, f"jobs/{job.id}/{path}".rstrip("/")), 403, "forbidden")
            assert said == f"Job {job.id} belongs to ann, and you are bob: ask its owner or the operator."
        assert house.store.job(job.id).state == "queued"
        assert api.get(f"jobs/{job.id}").status_code == 200
        mine = api.post("jobs", json=SPEC | {"prompts": ["a"]}).json()["job"]
        assert mine["owner"] == "bob"
        assert api.post(f"jobs/{mine['id']}/cancel").json()["state"] == "cancelled"
        assert api.post(f"jobs/{mine['id']}/retry").json()["job"]["state"] == "queued"
        assert refused(api.delete(f"jobs/{mine['id']}"), 409, "WrongState")
        api.post(f"jobs/{mine['id']}/cancel")
        assert api.delete(f"jobs/{mine['id']}").status_code == 204

    @pytest.mark.parametrize(
        "cursor", ["x", "é", "W10", "WzEsImEgYiJd", "WzEwMDAwMDAwMDAwMDAwMDAwMDAwMDAsMV0", "bnVsbA", ""]
    )
    def test_cursors_that_are_none(self, api: TestClient, job: Job, cursor: str) -> None:
        for path in ("jobs", *(f"jobs/{job.id}/{of}" for of in ("shards", "attempts", "rows", "errors", "logs"))):
            answer = api.get(path, params={"cursor": cursor})
            assert "take it from `next` of the page before" in refused(answer, 400, "UsageError"), path

    def test_a_database_that_does_not_answer(self, api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(*args: Any, **filters: Any) -> None:
            raise StoreError("the database postgresql://u:hunter2@h/d does not answer")

        monkeypatch.setattr("jobs.store.Store.jobs_page", away)
        assert "hunter2" not in refused(api.get("jobs"), 503, "StoreError")


class TestRows:
    def test_in_order_page_by_page(self, api: TestClient, job: Job) -> None:
        expected = [json.loads(line(row)) for row in expected_rows()]  # −inf is null
        for limit in (1, 3, 100):
            found = pages(api, f"jobs/{job.id}/rows", limit=limit)
            assert [row for page in found for row in page] == expected
            assert all(len(page) <= limit for page in found)
        assert pages(api, f"jobs/{job.id}/rows", prompt=3, limit=1)[:2] == [
            [row] for row in expected if row["prompt_index"] == 3
        ]
        assert api.get(f"jobs/{job.id}/rows?prompt=2").json()["items"] == []
        assert "has no prompt 5" in refused(api.get(f"jobs/{job.id}/rows?prompt=5"), 404, "JobNotFound")

    def test_long_sequences_make_short_pages(self, api: TestClient, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("webui.api.results._PAGE_TOKENS", 4)
        everything = [row["custom_id"] for row in expected_rows()]
        for query in ({}, {"sort": "length"}):
            found = pages(api, f"jobs/{job.id}/rows", limit=100, **query)
            assert len(found) > 3
            assert sorted(row["custom_id"] for page in found for row in page) == everything

    def test_diagnostics(self, api: TestClient, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        """Their infinities are null as well, and a page is shorter by what they hold."""
        job = house.submit(prompts=["a", "b"], diagnostics=["margins"], top_k_alternatives=2).job
        claim = house.claim()
        assert claim is not None
        rows = [
            made_row(SnapshotRow(p, f"c{p}", prompt="x"), g)
            | {"response_ids": [5], "top_ids": [[5, 6]], "top_logprobs": [[0.0, -np.inf]], "margins": [np.inf]}
            for p in range(2)
            for g in range(2)
        ]
        assert house.store.commit(claim, write_attempt(house.paths(job), claim.shard, rows, [], {}))
        (page,) = pages(api, f"jobs/{job.id}/rows")
        assert [(row["top_ids"], row["top_logprobs"], row["margins"]) for row in page] == [
            ([[5, 6]], [[0.0, None]], [None])
        ] * 4
        monkeypatch.setattr("webui.api.results._PAGE_TOKENS", 6)
        assert [len(page) for page in pages(api, f"jobs/{job.id}/rows")] == [2, 2, 0]

    @pytest.mark.parametrize("order", ["asc", "desc"])
    @pytest.mark.parametrize("sort", SORTS)
    def test_sorted(self, api: TestClient, job: Job, sort: str, order: str) -> None:
        def key(row: dict[str, Any]) -> tuple[float, int, int]:
            column, _, how = sort.rpartition("_")
            values = [1.0] * len(row["response_ids"]) if sort == "length" else row[column]
            value = float(np.sum(values, dtype=np.float64))
            if how == "mean":
                value = value / len(values) if values else np.nan
            signed = value if order == "asc" else -value
            return (np.inf if np.isnan(signed) else signed, row["prompt_index"], row["sample_index"])

        expected = [key(row)[1:] for row in sorted(expected_rows(), key=key)]
        for limit in (3, 500):
            found = pages(api, f"jobs/{job.id}/rows", sort=sort, order=order, limit=limit)
            assert [(row["prompt_index"], row["sample_index"]) for page in found for row in page] == expected
        page = api.get(f"jobs/{job.id}/rows", params={"sort": sort, "prompt": 3}).json()
        assert page["scanned"] == len(page["items"]) == 2

    def test_a_bounded_number_is_compared(self, api: TestClient, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("jobs.ranking.SCANNED", 3)
        page = api.get(f"jobs/{job.id}/rows?sort=length&order=desc").json()
        assert page["scanned"] == len(page["items"]) == 4, "whole shards, until there are three"
        assert {row["prompt_index"] for row in page["items"]} == {0, 1}

    def test_by_what_was_not_measured(self, api: TestClient, house: House) -> None:
        job = house.finish(house.submit(prompts=["a"], measurements=["logprobs"]).job)
        said = refused(api.get(f"jobs/{job.id}/rows?sort=entropies_sum"), 400, "UsageError")
        assert said == f"job {job.id} did not measure entropies; sort by length or by what it measured"

    def test_prompt_errors(self, api: TestClient, house: House, job: Job) -> None:
        assert api.get(f"jobs/{job.id}/errors").json() == {"items": ERRORS, "next": None}
        many = house.finish(house.submit(prompts=["bad", "bad", "ok", "bad"], shard_size=3).job)
        found = pages(api, f"jobs/{many.id}/errors", limit=1)
        assert [error["prompt_index"] for page in found for error in page] == [0, 1, 3]
        assert api.get(f"jobs/{many.id}/manifest").json()["counts"]["prompt_errors"] == 3


class TestFiles:
    def test_whole_in_part_and_by_head(self, api: TestClient, house: House, job: Job) -> None:
        shard = house.store.shard(job.id, 1)
        path = house.paths(job).resolve(shard.file or "")
        data, url = path.read_bytes(), f"jobs/{job.id}/files/1"
        whole = api.get(url)
        assert (whole.status_code, whole.content) == (200, data)
        assert whole.headers["etag"] == f'"{sha256_of(path)}"'
        assert whole.headers["content-disposition"] == f'attachment; filename="{job.id}-000001.parquet"'
        head = api.head(url)
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(data)))
        part = api.get(url, headers={"Range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, data[10:20])
        assert part.headers["content-range"] == f"bytes 10-19/{len(data)}"
        assert api.get(url, headers={"Range": "bytes=-5"}).content == data[-5:]
        assert api.get(url, headers={"Range": f"bytes={len(data)}-"}).status_code == 416
        same = {"Range": "bytes=0-3", "If-Range": whole.headers["etag"]}
        assert api.get(url, headers=same).status_code == 206
        assert api.get(url, headers=same | {"If-Range": '"other"'}).status_code == 200

    def test_prompt_errors(self, api: TestClient, job: Job) -> None:
        answer = api.get(f"jobs/{job.id}/files/1/errors")
        assert [json.loads(line) for line in answer.text.splitlines()] == ERRORS
        assert "has no prompt errors" in refused(api.get(f"jobs/{job.id}/files/0/errors"), 409, "NotFinished")

    def test_what_is_not_there(self, api: TestClient, house: House, job: Job) -> None:
        waiting = house.submit(prompts=["a"]).job
        said = refused(api.get(f"jobs/{waiting.id}/files/0"), 409, "NotFinished")
        assert said == f"shard 0 of job {waiting.id} is pending: it has a file once it is done"
        assert "has no shard 9" in refused(api.get(f"jobs/{job.id}/files/9"), 404, "JobNotFound")
        assert api.get(f"jobs/{job.id}/files/99999999999").status_code == 422
        house.paths(job).resolve(house.store.shard(job.id, 0).file or "").unlink()
        assert "is missing" in refused(api.get(f"jobs/{job.id}/files/0"), 503, "ResultsError")


def test_the_page_names_every_operation_and_loads_no_script(api: TestClient) -> None:
    description = api.get("http://127.0.0.1/openapi.json").json()
    page = api.get("http://127.0.0.1/docs").text
    assert '<a href="/docs">' in api.get("http://127.0.0.1/jobs").text, "and every other page leads there"
    assert "<code>/api/v1/jobs/stream</code>." in page
    assert "`" not in page
    text = html.unescape(page)
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()} {path}" in text
            assert operation["summary"] in text
            assert {"400", "401", "422", "503"} <= operation["responses"].keys(), path
    for name in ("shard_size", "JobStatus", "Retried", "cdn"):
        assert (name in text) is (name != "cdn")
