"""The event of a job's end: written with the end, whichever it is, and kept until it is told or given up."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import update

from jobs.records import Job, Webhook
from jobs.store import Store
from jobs.store.schema import webhooks
from tests.contract.helpers import claim, run_out, submit
from tests.contract.test_plans import plans

URL = "https://hooks.example.org/x"


def _cancel_while_running(store: Store, job: Job) -> None:
    held = claim(store)
    store.cancel(job.id)
    assert store.webhooks_of(job.id) == [], "it has not ended yet"
    store.hand_back(held, "cancelled")


def _stream(store: Store, job: Job) -> None:
    run_out(store)
    assert store.webhooks_of(job.id) == []
    store.seal(job.id)


def _reaped(store: Store, job: Job) -> None:
    claim(store)
    assert store.reap(job.id, 0, 1, beat=0, reason="silent", limit=1)


ENDS: dict[str, tuple[str, Callable[[Store, Job], object]]] = {
    "the last commit": ("succeeded", lambda store, job: run_out(store)),
    "a failure at the limit": ("failed", lambda store, job: store.fail(claim(store), "boom", limit=1)),
    "a cancel at rest": ("cancelled", lambda store, job: store.cancel(job.id)),
    "a cancel while running": ("cancelled", _cancel_while_running),
    "the reaper": ("failed", _reaped),
    "the job's own error": ("failed", lambda store, job: store.fail_job(claim(store), "no such model")),
    "the seal of a stream": ("succeeded", _stream),
}


@pytest.mark.parametrize("way", ENDS)
def test_every_way_to_end_writes_one_event(store: Store, way: str) -> None:
    state, end = ENDS[way]
    sealed = way != "the seal of a stream"
    job = submit(store, 1, webhook=URL, sealed=sealed)
    silent = submit(store, 1, queue="other", sealed=sealed)
    end(store, job)
    ended = store.job(job.id)
    assert ended.state == state
    [webhook] = store.webhooks_of(job.id)
    assert (webhook.revision, webhook.url, webhook.tries, webhook.error) == (ended.revision, URL, 0, None)
    assert webhook.next_try_at is not None
    assert webhook.next_try_at <= store.clock()
    assert ended.ended_at is not None
    assert abs(webhook.created_at - ended.ended_at) < 5
    store.cancel(silent.id)
    assert store.webhooks_of(silent.id) == []
    assert store.webhooks_waiting() == 1


def test_an_end_that_was_undone_is_not_told_and_the_next_one_is(store: Store) -> None:
    job = submit(store, 2, webhook=URL)
    store.fail(claim(store), "boom", limit=1)
    run_out(store)
    [first] = store.webhooks_of(job.id)
    store.retry(job.id)
    assert store.webhooks_of(job.id) == []
    assert store.claim_webhook(hold=60) is None
    run_out(store)
    [second] = store.webhooks_of(job.id)
    assert second.revision > first.revision
    assert second.event_id != first.event_id


def test_an_end_that_was_told_stays_on_record(store: Store) -> None:
    job = submit(store, 1, webhook=URL)
    store.cancel(job.id)
    store.webhook_delivered(_claim(store))
    store.retry(job.id)
    run_out(store)
    first, second = store.webhooks_of(job.id)
    assert first.delivered_at is not None
    assert (second.delivered_at, second.revision) == (None, store.job(job.id).revision)


def _claim(store: Store) -> Webhook:
    webhook = store.claim_webhook(hold=60)
    assert webhook is not None
    return webhook


def _make_due(store: Store) -> None:
    with store.db.transaction() as connection:
        connection.execute(update(webhooks).where(webhooks.c.next_try_at.is_not(None)).values(next_try_at=1.0))


def test_a_try_keeps_others_away_until_its_time_is_over(store: Store) -> None:
    store.cancel(submit(store, 1, webhook=URL).id)
    first = _claim(store)
    assert (first.tries, store.claim_webhook(hold=60)) == (1, None)
    _make_due(store)  # whoever tried has died
    second = _claim(store)
    assert second.tries == 2
    store.webhook_failed(first, "the dead one's", None)
    [now] = store.webhooks_of(first.job_id)
    assert now == second, "a try that was overtaken says nothing any more"
    store.webhook_delivered(first)  # but what was taken was taken
    store.webhook_failed(second, "too late", 10.0)
    [now] = store.webhooks_of(first.job_id)
    assert (now.error, now.next_try_at) == (None, None)
    assert now.delivered_at is not None


def test_failed_and_given_up(store: Store) -> None:
    store.cancel(submit(store, 1, webhook=URL).id)
    store.webhook_failed(_claim(store), "answered 500", 3600.0)
    assert store.claim_webhook(hold=60) is None
    _make_due(store)
    store.webhook_failed(_claim(store), "answered 501\x00", None)
    [webhook] = store.webhooks_of(store.jobs()[0].id)
    assert (webhook.tries, webhook.next_try_at, webhook.delivered_at) == (2, None, None)
    assert webhook.error == "answered 501\ufffd"
    _make_due(store)
    assert store.claim_webhook(hold=60) is None
    assert store.webhooks_waiting() == 0


def test_no_event_is_claimed_by_two(store: Store) -> None:
    made = {submit(store, 1, webhook=URL).id for _ in range(20)}
    for job_id in made:
        store.cancel(job_id)
    claimed: list[str] = []
    start = threading.Barrier(4)

    def claim_all() -> None:
        start.wait(10)
        misses = 0
        while misses < 5:  # a row that another one holds just now is passed over: look again
            webhook = store.claim_webhook(hold=600)
            misses = misses + 1 if webhook is None else 0
            if webhook is not None:
                claimed.append(webhook.job_id)

    threads = [threading.Thread(target=claim_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(claimed) == sorted(made)


def test_events_go_with_their_job(store: Store) -> None:
    job = submit(store, 1, webhook=URL)
    store.cancel(job.id)
    store.tombstone(job.id)
    store.purge(job.id)
    assert store.webhooks_of(job.id) == []
    assert store.claim_webhook(hold=60) is None


def test_looking_for_what_is_due_reads_only_what_is_due(store: Store) -> None:
    job = submit(store, 1, webhook=URL)
    store.cancel(job.id)
    with store.db.transaction() as connection:
        told = [
            {"job_id": job.id, "revision": -n, "url": URL, "tries": 1, "created_at": 0.0, "delivered_at": 1.0}
            for n in range(1, 3_000)
        ]
        connection.execute(webhooks.insert(), told)
        if store.dialect == "postgresql":
            connection.exec_driver_sql("ANALYZE webhooks")
    with plans(store) as seen:
        _claim(store)
        store.webhooks_waiting()
    looks = [plan for plan in seen if "next_try_at <=" in plan or "next_try_at IS NOT NULL" in plan]
    assert len(looks) == 3, "an idle look, the claim, and the count"
    for plan in looks:  # SQLite is told to, and would refuse if it could not
        assert "webhooks_due" in plan, plan
