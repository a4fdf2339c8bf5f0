"""Rewards of a job, judged on this machine: its own, or a server's, which is sent numbers and never a function."""

from __future__ import annotations

import math
from typing import Any

import httpx2
import pytest

from jobs import Client
from jobs.errors import JobNotFound, NotFinished, WrongState
from jobs.manifest import verify
from jobs.paging import Page
from jobs.records import Job, Sidecar
from jobs.remote.cache import Cache
from jobs.remote.server import Server
from tests.house import House
from tests.web.conftest import TOKEN, Web


def length(row: dict[str, Any]) -> float | None:
    return None if row["prompt_index"] == 1 else len(row["response"])


def test_judged_and_read_in_the_same_way(client: Client, local: Client, house: House, job: Job) -> None:
    handle = client.get(job.id)
    made = handle.reward(length)
    assert (made.sequences, made.unjudged, made.shards, made.skipped) == (8, 2, 3, 0)
    assert handle.reward(length, again=False).skipped == 3
    values = [length(row) for row in house.results(job).rows()]
    assert [row["reward_length"] for row in handle.rows()] == values
    assert [row["reward_length"] for row in local.get(job.id).rows()] == values
    assert handle.dataset()["reward_length"][:] == values
    assert handle.to_pandas()["reward_length"].isna().sum() == 2
    assert [entry["shard"] for entry in handle.manifest()["sidecars"]] == [0, 1, 2]
    assert client.get(job.id).reward("tag_format").mean == 0.0
    assert {"reward_length", "reward_tag_format"} <= set(next(handle.rows()))


def test_only_the_owner_and_only_what_is_done(client: Client, house: House) -> None:
    job = house.submit(prompts=["p0", "p1", "p2"]).job
    with pytest.raises(NotFinished, match="ask for what there is"):
        client.get(job.id).reward(length)
    house.run_one()
    handle = client.get(job.id)
    assert handle.reward(length, partial=True).shards == 1
    assert [row["reward_length"] for row in handle.rows(partial=True)][:2] == [0.0, 1.0]


class TestOverHttp:
    @pytest.fixture
    def http(self, web: Web) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return httpx2.Client(base_url=f"http://127.0.0.1:{web.port}/api/v1", headers=headers)

    def test_rows_in_pages_and_in_order(self, http: httpx2.Client, house: House, local: Client, job: Job) -> None:
        local.get(job.id).reward(length)
        expected = {(r["prompt_index"], r["sample_index"]): r["reward_length"] for r in local.get(job.id).rows()}
        for query in ({"limit": 1}, {"limit": 3, "sort": "length", "order": "desc"}, {"prompt": 3}):
            cursor, seen = None, []
            while True:
                page = http.get(f"/jobs/{job.id}/rows", params=query | ({"cursor": cursor} if cursor else {})).json()
                seen += page["items"]
                if (cursor := page["next"]) is None:
                    break
            assert seen
            for row in seen:
                assert row["reward_length"] == expected[row["prompt_index"], row["sample_index"]]
        assert len(seen) == 2

    @pytest.mark.parametrize("limit", [1, 3, 500])
    @pytest.mark.parametrize(("order", "sign"), [("asc", 1), ("desc", -1)])
    def test_rows_by_a_reward(
        self, http: httpx2.Client, house: House, local: Client, job: Job, order: str, sign: int, limit: int
    ) -> None:
        def uneven(row: dict[str, Any]) -> float | None:
            place: int = 2 * row["prompt_index"] + row["sample_index"]
            return None if place in (2, 3) else float(7 * place % 4)

        local.get(job.id).reward(uneven)
        last = math.inf  # what was not judged
        keyed = [
            (last if row["reward_uneven"] is None else sign * row["reward_uneven"], row["prompt_index"], i)
            for i, row in enumerate(local.get(job.id).rows())
        ]
        rows = list(local.get(job.id).rows())
        query, seen = {"sort": "reward_uneven", "order": order, "limit": str(limit)}, []
        while True:
            page = http.get(f"/jobs/{job.id}/rows", params=query).json()
            assert page["scanned"] == len(rows)
            seen += page["items"]
            if page["next"] is None:
                break
            query["cursor"] = page["next"]
        names = ("prompt_index", "sample_index", "response", "reward_uneven")
        expected = [rows[i] for *_, i in sorted(keyed)]
        assert [[row[name] for name in names] for row in seen] == [[row[name] for name in names] for row in expected]
        found = http.get(f"/jobs/{job.id}/rows", params={"sort": "reward_uneven", "prompt": "3"}).json()["items"]
        assert [row["prompt_index"] for row in found] == [3, 3]

    def test_rows_by_a_reward_that_is_not_there(
        self, http: httpx2.Client, house: House, local: Client, job: Job
    ) -> None:
        def said(sort: str) -> str:
            answer = http.get(f"/jobs/{job.id}/rows", params={"sort": sort})
            assert answer.status_code in (400, 422)
            message: str = answer.json()["error"]["message"]
            return message

        assert said("reward_length") == f"job {job.id} has no reward_length; it has no rewards"
        local.get(job.id).reward(length)
        assert said("reward_lenght") == f"job {job.id} has no reward_lenght; it has reward_length"
        assert "sort" in said("reward-length")
        half = house.submit(prompts=["p0", "p1", "p2"], rewards=["tag_format"]).job
        house.run_one()  # by a worker that has not judged
        page = http.get(f"/jobs/{half.id}/rows", params={"sort": "reward_tag_format"}).json()
        assert [row["reward_tag_format"] for row in page["items"]] == [None] * 4

    def test_what_is_put_must_fit(self, http: httpx2.Client, house: House, job: Job) -> None:
        shard = house.store.shard(job.id, 0)
        good = {"of_sha256": shard.sha256, "values": [1.0, None, 0.0, 0.5]}
        path = f"/jobs/{job.id}/rewards/mine/0"

        def refused(status: int, path: str = path, **changes: Any) -> str:
            answer = http.put(path, json=good | changes)
            assert answer.status_code == status, answer.text
            message: str = answer.json()["error"]["message"]
            return message

        assert "shard 0 has 4 sequences, and 3 values came" in refused(400, values=[1.0] * 3)
        assert "another than the one that was measured" in refused(409, of_sha256="0" * 64)
        refused(422, of_sha256="x")
        refused(422, values=["<b>"])
        refused(422, function="lambda row: 1")
        refused(422, path.replace("mine", "no-name"))
        assert "has no shard 9" in refused(404, path[:-1] + "9")
        assert http.put(path, content='{"values": [NaN]}', headers={"Content-Type": "application/json"}).is_error
        assert house.store.sidecar_names(job.id) == []
        put = http.put(path, json=good)
        assert put.status_code == 200
        assert (put.json()["unjudged"], put.json()["rows"]) == (1, 4)
        assert [row["reward_mine"] for row in house.results(job).rows()] == [1.0, None, 0.0, 0.5] + [None] * 4
        file = http.get(f"/jobs/{job.id}/sidecars/reward/mine/0")
        assert (file.status_code, file.headers["etag"]) == (200, f'"{put.json()["sha256"]}"')
        assert http.get(f"/jobs/{job.id}/sidecars/reward/mine/1").status_code == 404

    def test_a_shard_that_is_not_done(self, remote: Client, http: httpx2.Client, house: House) -> None:
        job = house.submit(prompts=["p0"]).job
        answer = http.put(f"/jobs/{job.id}/rewards/mine/0", json={"of_sha256": "0" * 64, "values": []})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "NotFinished")

    def test_listed_in_pages(self, http: httpx2.Client, local: Client, job: Job) -> None:
        local.get(job.id).reward(length)
        local.get(job.id).reward("tag_format")
        with_limit: list[tuple[str, int]] = []
        server = Server(str(http.base_url).removesuffix("/api/v1/"), TOKEN)
        pages: list[Page[Sidecar]] = list(server.pages(Sidecar, f"/jobs/{job.id}/sidecars", limit=2))
        for page in pages:
            with_limit += [(sidecar.name, sidecar.shard) for sidecar in page.items]
        assert with_limit == [(name, shard) for shard in range(3) for name in ("length", "tag_format")]
        assert len(pages) == 2

    def test_the_sentences_are_the_same(self, client: Client, house: House, job: Job) -> None:
        handle = client.get(job.id)
        file = handle.results.files()[0]
        with pytest.raises(WrongState, match="another than the one that was measured: read the job again"):
            handle._access.put_reward(job.id, type(file)(**_fields(file) | {"sha256": "0" * 64}), "a", [0.0] * 4)
        house.store.tombstone(job.id)
        with pytest.raises(JobNotFound, match=f"no job {job.id}"):
            handle._access.put_reward(job.id, file, "a", [0.0] * 4)

    def test_the_server_names_no_file_here(self, house: House, local: Client, job: Job) -> None:
        from dataclasses import replace

        from jobs.errors import ResultsError

        local.get(job.id).reward(length)
        [sidecar, *_], shard = house.store.sidecars(job.id), house.store.shard(job.id, 0)
        shelf = Cache(Server("http://127.0.0.1:1", None))
        [added] = shelf.place(shard, [sidecar.column], [replace(sidecar, file="../../evil")]).added
        assert added.path is not None and added.path.name == f"{sidecar.sha256}.parquet"
        with pytest.raises(ResultsError, match="no digest"):
            shelf.place(shard, [sidecar.column], [replace(sidecar, sha256="../../evil")])
        assert verify(house.paths(job).folder) == []


def _fields(file: Any) -> dict[str, Any]:
    return {name: getattr(file, name) for name in file.__slots__}
