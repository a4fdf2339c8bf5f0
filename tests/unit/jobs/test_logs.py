"""The last lines of a job's log are the end of the whole log, whatever else the workers wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.logs import job_log, tail
from jobs.paths import worker_log
from tests.house import House


def write(root: Path, worker: str, lines: list[dict[str, object]], *, end: str = "") -> None:
    path = worker_log(root, worker)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end)


@pytest.mark.parametrize("noise", [0, 40, 400])  # lines of another job after each of ours: more than one look reads
def test_the_end_of_all_workers_lines(house: House, noise: int) -> None:
    job = house.submit([str(n) for n in range(4)]).job
    for _ in range(2):
        house.run_one()
    root = house.settings.results
    other = [{"time": 0.0, "job": "000000000000", "message": "x" * 60}] * noise
    lines = [line for n in range(30) for line in ({"time": float(n), "job": job.id, "message": str(n)}, *other)]
    write(root, "w1", lines, end='{"time": 99, "job": "')
    whole = list(job_log(house.store, root, job.id))
    assert len(whole) == 30
    for count in (1, 7, 30, 100):
        assert tail(house.store, root, job.id, count) == whole[-count:]


def test_far_behind_what_others_wrote_only_the_nearest_lines_are_found(house: House) -> None:
    job = house.submit(["x"]).job
    house.run_one()
    noise = [{"time": 0.0, "job": "000000000000", "message": "x" * 900}] * 1000
    lines = [line for n in range(10) for line in ({"time": float(n), "job": job.id, "message": str(n)}, *noise)]
    write(house.settings.results, "w1", lines)
    whole = list(job_log(house.store, house.settings.results, job.id))
    found = tail(house.store, house.settings.results, job.id, 10)
    assert 0 < len(found) < 10
    assert found == whole[-len(found) :]


def test_without_a_log_there_is_nothing(house: House) -> None:
    job = house.submit(["x"]).job
    house.run_one()
    assert tail(house.store, house.settings.results, job.id, 5) == []
