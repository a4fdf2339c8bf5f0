"""Jobs that are fed: pieces come once and in order, whoever races, dies or is cancelled; and the end is the seal's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from threading import Barrier

import pytest

from jobs.abandoned import silence
from jobs.errors import JobNotFound, WrongState
from jobs.processes import this_process
from jobs.reaper import Reaper
from jobs.records import Job, ShardRange
from jobs.states import JobState
from jobs.store import Store
from tests.clock import Clock
from tests.contract.helpers import SAMPLES, a_job, check, claim, result, run_out, submit, try_claim
from tests.contract.test_reaper import ELSEWHERE, LEASE, wind


def opened(store: Store, **changes: object) -> Job:
    fields = {"num_prompts": 0, "snapshot_digest": "", "sealed": False, "G": SAMPLES, **changes}
    return store.create_job(a_job(0, **fields), ())[0]


def piece(first: int, count: int) -> Iterator[ShardRange]:
    """Shards of at most three prompts, for the segment that the store says."""
    for start in range(0, count, 3):
        yield ShardRange(0, start, min(start + 3, count), first + start)


def append(store: Store, job: Job, first: int, count: int, placed: list[int] | None = None) -> Job:
    return store.append_prompts(
        job.id, first, count, piece(first, count), (placed if placed is not None else []).append
    )


def shards(store: Store, job: Job) -> list[tuple[int, int, int, int, int]]:
    return [(s.index, s.segment, s.start, s.stop, s.first_prompt) for s in store.shards(job.id)]


def test_pieces_follow_each_other(store: Store) -> None:
    job, placed = opened(store), list[int]()
    assert (job.sealed, job.num_shards, job.state) == (False, 0, JobState.QUEUED)
    append(store, job, 0, 4, placed)
    now = append(store, job, 4, 3, placed)
    assert (now.num_prompts, now.num_sequences, now.num_shards, now.pending_shards) == (7, 14, 3, 3)
    assert shards(store, job) == [(0, 0, 0, 3, 0), (1, 0, 3, 4, 3), (2, 1, 0, 3, 4)]
    assert (placed, store.segments(job.id)) == ([0, 1], 2)
    check(store, job.id)


def test_a_piece_that_is_sent_twice_is_there_once(store: Store) -> None:
    job, placed = opened(store), list[int]()
    append(store, job, 0, 4, placed)
    again = append(store, job, 0, 4, placed)
    assert (again.num_prompts, again.num_shards, placed) == (4, 2, [0])
    store.seal(job.id)
    assert append(store, job, 0, 4, placed).num_prompts == 4, "also when it was the last"
    assert placed == [0]


def test_what_does_not_come_next_is_refused(store: Store) -> None:
    job, placed = opened(store), list[int]()
    append(store, job, 0, 4, placed)
    for first in (0, 3, 5):
        with pytest.raises(WrongState, match=f"has 4 prompts, so that prompt {first} is not the next one"):
            append(store, job, first, 3 if first else 1, placed)
    assert (placed, len(store.shards(job.id))) == ([0], 2)


def test_what_cannot_be_placed_changes_nothing(store: Store) -> None:
    job = opened(store)
    append(store, job, 0, 3)
    before = store.job(job.id)

    def full(segment: int) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        store.append_prompts(job.id, 3, 3, piece(3, 3), full)
    assert store.job(job.id) == before
    assert append(store, job, 3, 3).num_shards == 2


def test_of_two_for_one_place_one_gets_it(store: Store) -> None:
    """Both saw three prompts; one adds two and the other five. No segment is placed that has no shards."""
    job, start = opened(store), Barrier(2)
    append(store, job, 0, 3)
    placed: list[tuple[int, int]] = []

    def feed(count: int) -> int:
        start.wait()
        try:
            place = lambda segment: placed.append((segment, count))  # noqa: E731
            return store.append_prompts(job.id, 3, count, piece(3, count), place).num_prompts
        except WrongState:
            return 0

    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(feed, (2, 5)))
    assert sorted(end == 0 for end in ends) == [False, True]
    assert placed == [(1, max(ends) - 3)]
    assert store.job(job.id).num_prompts == max(ends)
    check(store, job.id)


def test_it_ends_once_it_is_sealed_and_all_its_shards_are(store: Store) -> None:
    job = opened(store)
    append(store, job, 0, 3)
    assert run_out(store) == 1
    assert store.job(job.id).state is JobState.RUNNING
    assert store.unfinished_exists(["default"]), "a worker that leaves when idle stays: more may come"
    append(store, job, 3, 3)
    assert store.seal(job.id)
    assert not store.seal(job.id, truncated="too late")
    last = claim(store)
    assert store.job(job.id).state is JobState.RUNNING
    store.commit(last, result())
    ended = check(store, job.id)
    assert (ended.state, ended.truncated, ended.done_shards) == (JobState.SUCCEEDED, None, 2)
    assert not store.unfinished_exists(["default"])
    with pytest.raises(WrongState, match=r"takes no more prompts: it is succeeded"):
        append(store, job, 6, 3)
    with pytest.raises(WrongState, match=r"takes no more prompts: it is succeeded"):
        store.beat_feed(job.id)


def test_an_empty_stream_is_a_cancelled_job(store: Store) -> None:
    job = opened(store)
    store.seal(job.id)
    assert check(store, job.id).state is JobState.CANCELLED


def test_a_job_that_came_whole_takes_none(store: Store) -> None:
    job = submit(store, 1)
    with pytest.raises(WrongState, match="takes no more prompts: it came with all its prompts"):
        append(store, job, 3, 1)
    with pytest.raises(JobNotFound):
        store.append_prompts("none", 0, 1, piece(0, 1), lambda _: None)


def test_a_cancel_ends_the_stream(store: Store) -> None:
    job = opened(store)
    append(store, job, 0, 9)
    running = claim(store)
    assert store.cancel(job.id).state is JobState.CANCELLING
    with pytest.raises(
        WrongState, match="takes no more prompts: its prompts broke off after 9 prompts: the job was cancelled"
    ):
        append(store, job, 9, 3)
    store.commit(running, result())
    assert check(store, job.id).state is JobState.CANCELLED
    store.retry(job.id)
    assert run_out(store) == 2
    assert check(store, job.id).state is JobState.SUCCEEDED


def test_a_job_that_fails_by_itself_ends_the_stream(store: Store) -> None:
    """What was still to come is missing, and a retry does not bring it: the job says so to its end."""
    job = opened(store)
    append(store, job, 0, 4)
    assert store.fail_job(claim(store), "no such model")
    with pytest.raises(
        WrongState, match="no more prompts: its prompts broke off after 4 prompts: the job failed: no such model"
    ):
        append(store, job, 4, 3)
    store.retry(job.id)
    run_out(store)
    ended = check(store, job.id)
    assert (ended.state, ended.done_shards) == (JobState.SUCCEEDED, 2)
    assert ended.truncated == "its prompts broke off after 4 prompts: the job failed: no such model"


def test_it_waits_from_its_new_prompts_on(store: Store) -> None:
    """A job that had nothing to be served for a while is not aged by that."""
    job = opened(store)
    append(store, job, 0, 3)
    run_out(store)
    with store.db.transaction() as connection:
        connection.exec_driver_sql("UPDATE jobs SET waiting_since = waiting_since - 5000")
    append(store, job, 3, 3)
    taken = try_claim(store)
    assert taken is not None and not taken.aged


class TestAbandoned:
    def test_a_silent_feeder(self, store: Store) -> None:
        fed, silent, clock = opened(store), opened(store), Clock()
        append(store, silent, 0, 3)
        reaper = Reaper(store, LEASE, limit=3, clock=clock)
        reaper.look()
        for _ in range(39):
            store.beat_feed(fed.id)
            wind(reaper, clock, silence(LEASE) / 40)
        assert not store.job(silent.id).sealed
        store.beat_feed(fed.id)
        wind(reaper, clock, silence(LEASE) / 40)
        sealed = store.job(silent.id)
        assert (sealed.sealed, sealed.truncated) == (
            True,
            "its prompts broke off after 3 prompts: whoever fed them has not been heard of for 300 s",
        )
        assert not store.job(fed.id).sealed
        with pytest.raises(WrongState, match="takes no more prompts: its prompts broke off after 3 prompts"):
            append(store, silent, 3, 3)
        run_out(store)
        assert check(store, silent.id).state is JobState.SUCCEEDED, "what came is done"

    def test_a_reaper_that_could_not_look_counts_anew(self, store: Store) -> None:
        job, clock = opened(store), Clock()
        reaper = Reaper(store, LEASE, limit=3, clock=clock)
        reaper.look()
        clock.now += 2 * silence(LEASE)
        reaper.look()
        assert not store.job(job.id).sealed

    def test_a_dead_process_of_this_host_at_once(self, store: Store) -> None:
        gone = asdict(replace(this_process(), process_started=1.0))
        dead = opened(store, feeder=gone)
        alive, far = opened(store, feeder=asdict(this_process())), opened(store, feeder=asdict(ELSEWHERE))
        Reaper(store, LEASE, limit=3).look()
        assert f"({gone['pid']} on {gone['host']}) is gone" in (store.job(dead.id).truncated or "")
        assert not store.job(alive.id).sealed and not store.job(far.id).sealed

    def test_a_word_that_comes_just_now(self, store: Store) -> None:
        job = opened(store)
        [feed] = store.feeds()
        store.beat_feed(job.id)
        assert not store.seal(job.id, truncated="silent", fed=feed.fed)
        assert not store.job(job.id).sealed
