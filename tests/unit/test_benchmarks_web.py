"""The page's benchmark works, and notices what is wrong. Nothing here looks at a clock."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import charts, lists, many_jobs, web
from benchmarks.lanes import Lane
from benchmarks.wrong import Wrong
from jobs import Client
from jobs.store import Store


@pytest.fixture
def lane(tmp_path: Path) -> Lane:
    made = Lane("sqlite", tmp_path / "home")
    Store.open(made.settings).close()
    return made


def test_a_quick_run_makes_tables_plans_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert web.main(["--quick", "--only", "queries-sqlite"]) == 0
    out = capsys.readouterr().out
    report = json.loads(out.splitlines()[-1])
    (row,) = report["rows"]
    assert math.isfinite(row["measured"]) and row["verdict"] is None, row
    assert set(report["measured"]["queries, sqlite"]["kinds"]) == {kind.name for kind in lists.kinds(20_000)}
    assert "owner, failed" in out and "jobs_owner_newest" in out and "job_labels_value_newest" in out


def test_a_list_that_should_find_something_and_does_not_is_noticed(lane: Lane) -> None:
    lists.fill(lane, 500)
    with pytest.raises(Wrong, match="There is no job with"):
        lists.queries(lane, 20_000, samples=5)  # asks for labels that so few jobs do not have


def test_filters_are_a_url() -> None:
    label = {"states": ["failed", "queued"], "label": ("run", "7 & 8"), "text": "x y"}
    assert lists.url(label) == "/jobs?state=failed&state=queued&label=run%3D7+%26+8&q=x+y"
    assert lists.url({"label": ("run", None)}) == "/jobs?label=run"
    assert lists.url({}) == "/jobs"


def test_quantiles_are_milliseconds() -> None:
    assert lists.quantiles([n / 1_000 for n in range(101)]) == {"p50": 50, "p95": pytest.approx(95), "max": 100}
    assert lists.quantiles([0.002]) == {"p50": 2, "p95": 2, "max": 2}


def test_the_many_jobs_are_whole(lane: Lane) -> None:
    store = Store.open(lane.settings)
    many_jobs.fill(store, 700, now=1e9)
    jobs = store.jobs(limit=1_000)
    assert len(jobs) == len({job.id for job in jobs}) == 700
    assert sum(job.state.ended for job in jobs) == 700 - many_jobs.OPEN
    assert all(store.jobs(label=("run", f"run{n}"), limit=700) == jobs[100 * n : 100 * n + 100] for n in range(7))
    assert {job.labels["run"] for job in jobs[:100]} == {"run0"}
    store.close()


def test_the_job_with_charts_is_a_job_like_others(lane: Lane) -> None:
    job_id, tokens = charts.make_job(lane, 300)
    with Client(lane.settings) as client:
        job = client.get(job_id)
        assert (job.state, job.record.num_shards, job.record.done_sequences) == ("succeeded", 2, 300 * charts.G)
        rows = list(job.rows())
    assert len(rows) == 300 * charts.G and sum(len(row["logprobs"]) for row in rows) == tokens
    right = sum(f"<answer>{row['answer']}</answer>" in row["response"] for row in rows)
    assert right == 300 * 3  # samples 0, 3 and 6 of each prompt
