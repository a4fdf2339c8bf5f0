"""Lists of jobs: whatever is asked for, in whatever pieces, is what a look at every job would find."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from sqlalchemy import event, update

from benchmarks import many_jobs
from jobs.records import Job, StateCounts
from jobs.states import JobState
from jobs.store import Store, listing
from jobs.store.schema import jobs
from tests.contract.helpers import age, run_out, submit

NOW = 1.7e9
MANY = 1_500

FILTERS: dict[str, Any] = {
    "states": [JobState.FAILED, JobState.QUEUED],
    "owner": "owner0",
    "label": ("project", "project6"),
    "model": "org/model-0",
    "queue": "gpu",
    "text": "STEP 1",
}


def matches(job: Job, filters: dict[str, Any]) -> bool:
    """What the filters mean, said in another way."""
    key, value = filters.get("label", (None, None))
    searched = (job.id, job.name, job.model, job.adapter)
    return (
        job.state in filters.get("states", JobState)
        and all(getattr(job, name) == filters[name] for name in ("owner", "model", "queue") if name in filters)
        and (key is None or (key in job.labels and value in (None, job.labels[key])))
        and any(filters.get("text", "").lower() in (text or "").lower() for text in searched)
    )


def all_pages(store: Store, limit: int, **filters: Any) -> list[Job]:
    """Every page of a list, one after the other; only the last may end the list."""
    page = store.jobs_page(limit=limit, **filters)
    found = page.jobs
    while page.next is not None:
        page = store.jobs_page(limit=limit, before=page.next, **filters)
        found += page.jobs
    return found


@pytest.fixture
def many(store: Store) -> Store:
    many_jobs.fill(store, MANY, now=NOW)
    return store


def test_filters_and_pages(store: Store) -> None:
    a = submit(store, 1, labels={"run": "7", "odd %_'\"key": "x"}, name="Night_Run")
    b = submit(store, 1, owner="bob", labels={"run": "8"}, model="org/100%")
    c = submit(store, 1, queue="gpu", adapter="org/lora")
    store.cancel(b.id)
    for older, job in enumerate((c, b, a)):
        age(store, job.id, older * 10)

    def found(**filters: Any) -> list[str]:
        return [job.id for job in store.jobs(**filters)]

    assert found() == [c.id, b.id, a.id]
    assert found(states=[JobState.QUEUED]) == [c.id, a.id]
    assert found(states=[]) == []
    assert found(owner="bob") == found(model="org/100%") == found(label=("run", "8")) == [b.id]
    assert found(label=("run", None)) == [b.id, a.id]
    assert found(label=("odd %_'\"key", "x")) == [a.id]
    assert found(queue="gpu") == found(text="LORA") == [c.id]
    assert found(text="night_") == [a.id]
    assert found(text="100%") == [b.id]
    assert found(text="_") == [a.id]  # a character, not a pattern
    assert found(text=b.id[:8]) == [b.id]
    assert found(limit=2) == [c.id, b.id]
    assert found(limit=2, before=(store.job(b.id).created_at, b.id)) == [a.id]
    with pytest.raises(TypeError, match="modle"):
        found(modle="org/100%")


def test_pages_of_jobs_created_at_the_same_moment(store: Store) -> None:
    made = sorted(submit(store, 1).id for _ in range(5))
    with store.db.transaction() as connection:
        connection.execute(update(jobs).values(created_at=1e9))
    assert [job.id for job in all_pages(store, 2)] == made[::-1]


def test_every_combination_of_filters_in_every_kind_of_piece(many: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a look at every job, with a window so small that most lists take several."""
    monkeypatch.setattr(listing, "_WINDOW", 100)
    everything = many.jobs(limit=MANY + 1)
    assert [job.created_at for job in everything] == [NOW - 60 * place for place in range(MANY)]
    assert len({job.id for job in everything}) == MANY
    assert {state for job in everything for state in [job.state]} == set(JobState) - {JobState.CANCELLING}
    for size in range(len(FILTERS) + 1):
        for names in combinations(FILTERS, size):
            filters = {name: FILTERS[name] for name in names}
            expected = [job for job in everything if matches(job, filters)]
            assert expected or size > 3, names  # else it would show little
            assert many.jobs(limit=MANY, **filters) == expected, names
            assert all_pages(many, 40, **filters) == expected, names
            if "states" not in filters:
                check_counts(many.job_counts(**filters), expected, names)
    assert many.jobs(limit=MANY, label=("project", None)) == [job for job in everything if "project" in job.labels]


def check_counts(counts: StateCounts, expected: list[Job], names: tuple[str, ...]) -> None:
    there = Counter(job.state for job in expected)
    assert set(counts) == set(JobState)
    for state, count in counts.items():
        assert count <= there[state] if state in counts.at_least else count == there[state], (names, state)


def test_a_page_says_how_far_back_it_looked(many: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_WINDOW", 100)
    newest, hundredth = many.jobs(states=[JobState.QUEUED], limit=100)[::99]
    page = many.jobs_page(text="no such thing")
    assert (page.jobs, page.next) == ([], (hundredth.created_at, hundredth.id))
    assert many.jobs_page(text=newest.id).next == page.next  # found, and there may be more
    assert many.jobs_page(text="org/", limit=3).next != page.next  # full: it goes on behind the last one shown
    last = many.jobs_page(text="no such thing", before=(NOW - 60 * (MANY - 50), ""))
    assert (last.jobs, last.next) == ([], None)


def test_of_two_filters_the_rarer_leads_the_way(many: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rare one's jobs are the oldest: by the other way the first look would end long before them."""
    monkeypatch.setattr(listing, "_WINDOW", 150)
    for common in ({"owner": "owner0"}, {"model": "org/model-0"}, {"label": ("run", None)}):
        page = many.jobs_page(queue="rare", limit=many_jobs.RARE, **common)
        assert page.jobs and page.next is None
        counts = many.job_counts(queue="rare", **common)
        assert sum(counts.values()) == len(page.jobs) and not counts.at_least


def test_counts_stop_where_they_are_enough(many: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = many.job_counts()
    assert sum(exact.values()) == MANY and not exact.at_least
    monkeypatch.setattr(listing, "_COUNTED", 100)
    counts = many.job_counts()
    assert counts == {state: min(count, 100) for state, count in exact.items()}
    assert counts.at_least == {state for state, count in exact.items() if count >= 100}
    monkeypatch.setattr(listing, "_WINDOW", 60)
    counts = many.job_counts(text="org/")
    assert counts[JobState.QUEUED] == 60 and counts.at_least == set(JobState)


def test_deleted_jobs_are_neither_listed_nor_counted(store: Store) -> None:
    gone, kept = submit(store, 1, labels={"run": "7"}), submit(store, 1, labels={"run": "7"})
    run_out(store)
    store.tombstone(gone.id)
    asked: list[dict[str, Any]] = [{"owner": "ada"}, {"label": ("run", "7")}, {"label": ("run", None)}, {"text": "org"}]
    for filters in ({}, *asked, {"owner": "ada", "label": ("run", "7")}):
        assert [job.id for job in store.jobs(**filters)] == [kept.id]
        assert store.job_counts(**filters)[JobState.SUCCEEDED] == 1


@pytest.mark.parametrize("dialect", ["sqlite"])
def test_eight_times_the_jobs_are_as_much_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in steps of SQLite's machine."""
    monkeypatch.setattr(listing, "_WINDOW", 200)
    monkeypatch.setattr(listing, "_COUNTED", 10)
    filters = FILTERS | {"label": ("project", None)}  # each found in more jobs than are looked at
    asked = [{}, *({name: value} for name, value in filters.items())]
    asked += [{"owner": "owner0", "model": "org/model-0"}, {"text": "no such thing"}]

    def steps() -> list[int]:
        counts = [steps_of(store, lambda one=one: store.jobs_page(**one)) for one in asked]
        without = [{name: one[name] for name in one if name != "states"} for one in asked]
        return counts + [steps_of(store, lambda one=one: store.job_counts(**one)) for one in without]

    many_jobs.fill(store, 3_000, now=NOW)
    few = steps()
    with store.db.transaction() as connection:
        connection.execute(jobs.delete())
    many_jobs.fill(store, 24_000, now=NOW)
    for name, before, after in zip([*asked, *asked], few, steps(), strict=True):
        assert after < 1.5 * before, (name, before, after)


def steps_of(store: Store, action: Callable[[], object]) -> int:
    """How many steps SQLite's machine takes for all statements of the action."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    def watch(connection: sqlite3.Connection, *_: Any) -> None:
        connection.set_progress_handler(count, 1)

    def leave(connection: sqlite3.Connection, *_: Any) -> None:
        connection.set_progress_handler(None, 0)

    event.listen(store.db.engine, "checkout", watch)
    event.listen(store.db.engine, "checkin", leave)
    action()
    event.remove(store.db.engine, "checkout", watch)
    event.remove(store.db.engine, "checkin", leave)
    return steps
