"""Summaries that are kept: each shard is read once, by one, and what is no longer true is forgotten."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from jobs import summaries
from jobs.errors import ResultsError
from jobs.records import Job
from jobs.store.schema import jobs, shards
from jobs.summaries import Summaries
from jobs.summary import Summary
from tests.house import House

MEASURED = ("logprobs", "entropies")


def look(house: House, kept: Summaries, job: Job) -> Summary:
    return kept.of(house.store, house.paths(job), house.store.job(job.id), MEASURED)


def test_grows_with_the_job_and_reads_nothing_twice(house: House) -> None:
    job, kept = house.submit(prompts=["p"] * 6).job, Summaries()
    assert look(house, kept, job).sequences == 0
    for done in (1, 2, 3):
        house.run_one()
        summary = look(house, kept, job)
        assert (summary.shards, summary.sequences) == (done, 4 * done)
        for path in house.paths(job).shards.iterdir():
            path.unlink()  # what was read is not needed any more
    assert look(house, kept, job) is summary
    rows = look(house, kept, job)
    assert rows.tokens == house.store.job(job.id).done_tokens
    with pytest.raises(ResultsError, match="is missing: its folder was moved"):
        look(house, Summaries(), job)


def test_many_at_once_are_given_one_summary(house: House) -> None:
    job, kept = house.finish(house.submit(prompts=["p"] * 20).job), Summaries()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: look(house, kept, job), range(32)))
    assert {id(summary) for summary in found} == {id(found[0])}
    assert found[0].shards == 10


def test_a_shard_that_another_attempt_made_counts_as_that_attempt_made_it(house: House) -> None:
    job, kept = house.finish(house.submit(prompts=["p"] * 4).job), Summaries()
    before = look(house, kept, job)
    first, second = house.store.committed(job.id)
    assert look(house, Summaries(), job).tokens == first.tokens + second.tokens
    other = house.paths(job).attempt_files(0, 2)[0]
    shutil.copy(house.paths(job).resolve(second.file), house.paths(job).resolve(other))
    with house.store.db.transaction() as connection:
        connection.execute(update(shards).where(shards.c.index == 0).values(file=other))
        connection.execute(update(jobs).values(revision=jobs.c.revision + 1))
    after = look(house, kept, job)
    assert after.shards == before.shards == 2
    assert after.tokens == 2 * second.tokens != before.tokens


def test_a_job_too_large_for_one_look_grows_from_look_to_look(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "_PATIENCE", 0.0)
    monkeypatch.setattr(summaries, "_TOKENS", 1)
    job, kept = house.finish(house.submit(prompts=["p"] * 60).job), Summaries()
    seen = [look(house, kept, job).shards for _ in range(30)]
    assert 0 < seen[0] < 30
    assert seen == sorted(seen)
    assert seen[-1] == 30
    assert look(house, kept, job).tokens == job.done_tokens


def test_the_job_looked_at_least_lately_is_forgotten(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "_KEPT", 2)
    kept = Summaries()
    first, second, third = (house.finish(house.submit(prompts=[f"{i}"]).job) for i in range(3))
    for job in (first, second, first, third):
        look(house, kept, job)
    for job in (first, second):
        shutil.rmtree(house.paths(job).folder)
    assert look(house, kept, first).sequences == 2
    with pytest.raises(ResultsError):
        look(house, kept, second)


def test_a_damaged_file_is_said_and_harms_no_later_look(house: House) -> None:
    job, kept = house.finish(house.submit(prompts=["p"] * 4).job), Summaries()
    path = house.paths(job).resolve(house.store.committed(job.id)[1].file)
    whole = path.read_bytes()
    path.write_bytes(b"short")
    with pytest.raises(ResultsError, match="cannot be read, it may be damaged"):
        look(house, kept, job)
    path.write_bytes(whole)
    assert look(house, kept, job).tokens == job.done_tokens
