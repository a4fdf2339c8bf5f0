"""How long an ended job is kept: for as long as it asked, and for ever if it did not."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from jobs.errors import JobNotFound
from jobs.store import Store
from jobs.store.schema import jobs
from tests.contract.helpers import run_out, submit

DAY = 86_400.0


def _ended(store: Store, days_ago: float, ttl: float | None) -> str:
    """A job that ended so long ago; `ttl` in days."""
    job = submit(store, 1, ttl=ttl)
    run_out(store)
    with store.db.transaction() as connection:
        older = {"ended_at": jobs.c.ended_at - days_ago * DAY}
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(older))
    return job.id


def test_only_what_is_past_its_ttl_goes(store: Store) -> None:
    past, fraction = _ended(store, 2.01, 2), _ended(store, 0.6, 0.5)
    kept = [_ended(store, 1.99, 2), _ended(store, 1000, None), submit(store, 1, ttl=0.0001).id]
    assert set(store.past_ttl()) == {past, fraction}
    assert set(store.tombstone_past_ttl()) == {past, fraction}
    assert {job.id for job in store.tombstoned()} == {past, fraction}
    assert store.tombstone_past_ttl() == []
    assert [store.job(job_id).id for job_id in kept] == kept
    with pytest.raises(JobNotFound):
        store.job(past)


def test_a_job_that_was_retried_is_counted_from_its_last_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = submit(store, 1, ttl=1)
    store.cancel(job.id)
    with store.db.transaction() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job.id).values(ended_at=jobs.c.ended_at - 2 * DAY))
    stale = store.past_ttl()
    assert stale == [job.id]
    store.retry(job.id)
    assert store.past_ttl() == []
    monkeypatch.setattr(store, "past_ttl", lambda: stale)  # the retry came between the look and the transaction
    assert store.tombstone_past_ttl() == []
    run_out(store)
    assert store.tombstone_past_ttl() == []
    assert store.job(job.id).state == "succeeded"
