"""Operations that meet: whatever order the database puts them in, the books balance and the job ends once."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from threading import Barrier
from typing import Any

from jobs.errors import WrongState
from jobs.settings import Settings
from jobs.states import JobState, ShardState
from jobs.store import Store
from tests.contract.helpers import LIMIT, check, claim, result, run_out, submit, try_claim
from tests.contract.processes import claim_all

ROUNDS = 8


def together(*acts: Callable[[], Any]) -> list[Any]:
    """Runs the acts at the same moment, each in a thread of its own; what each returned."""
    start = Barrier(len(acts))

    def run(act: Callable[[], Any]) -> Any:
        start.wait(30)
        return act()

    with ThreadPoolExecutor(len(acts)) as pool:
        return list(pool.map(run, acts))


def reap(store: Store, job_id: str, *, beat: int) -> bool:
    return store.reap(job_id, 0, 1, beat=beat, reason="silent", limit=LIMIT)


def test_two_processes_claim_each_shard_once(store: Store, settings: Settings) -> None:
    submitted = [submit(store, 100), submit(store, 100)]
    spawn = multiprocessing.get_context("spawn")
    meet, claimed = spawn.Barrier(2), spawn.Queue()
    claimers = [spawn.Process(target=claim_all, args=(settings, f"w{i}", meet, claimed)) for i in range(2)]
    for process in claimers:
        process.start()
    keys = [claimed.get(timeout=120) for _ in claimers]
    for process in claimers:
        process.join(30)
        assert process.exitcode == 0
    assert Counter(keys[0] + keys[1]) == Counter((job.id, i, 1) for job in submitted for i in range(100))
    assert [len(mine) for mine in keys] == [100, 100], "every claim meets one of the other's"
    for job in submitted:
        assert check(store, job.id).state is JobState.SUCCEEDED


def test_two_results_roots_at_once(store: Store) -> None:
    ids = [f"{store.store_id}/{name}" for name in ("one", "two")]
    taken = together(*(partial(store.take_root, root_id) for root_id in ids))
    assert set(taken) == {store.root_id()} < set(ids)
    assert store.take_root("a third") == store.root_id()


def test_the_last_two_commits_at_once_end_the_job_once(store: Store) -> None:
    for _ in range(ROUNDS):
        job = submit(store, 2)
        first, second = claim(store), claim(store)
        revision = store.job(job.id).revision
        kept = together(partial(store.commit, first, result()), partial(store.commit, second, result()))
        ended = check(store, job.id)
        assert kept == [True, True]
        assert (ended.state, ended.revision) == (JobState.SUCCEEDED, revision + 2)


def test_cancel_meets_claim_and_commit(store: Store) -> None:
    for _ in range(ROUNDS):
        job = submit(store, 3)
        mine = claim(store)
        _, kept, other = together(
            partial(store.cancel, job.id), partial(store.commit, mine, result()), partial(try_claim, store, "late")
        )
        assert kept
        assert store.shard(job.id, 0).state is ShardState.DONE
        if other is not None:  # it came before the cancel, and hears of it at its next beat
            assert check(store, job.id).state is JobState.CANCELLING
            assert store.beat(other, sequences=0, tokens=0).cancel
            store.hand_back(other, "cancelled")
        assert check(store, job.id).state is JobState.CANCELLED
        assert try_claim(store) is None


def test_retry_meets_a_zombies_commit(store: Store) -> None:
    for _ in range(ROUNDS):
        job = submit(store, 1)
        zombie = claim(store, "zombie")
        store.reap(job.id, 0, 1, beat=0, reason="silent", limit=1)
        _, kept = together(partial(store.retry, job.id), partial(store.commit, zombie, result()))
        assert not kept
        assert claim(store).shard.attempt == 2
        assert not store.commit(zombie, result())
        check(store, job.id)
        store.cancel(job.id)


def test_the_reaper_meets_a_beat_and_a_commit(store: Store) -> None:
    outcomes: Counter[tuple[bool, bool]] = Counter()
    for _ in range(ROUNDS):
        job = submit(store, 1)
        mine = claim(store)
        reaped, beat = together(partial(reap, store, job.id, beat=0), partial(store.beat, mine, sequences=1, tokens=1))
        assert reaped == beat.lost  # exactly one of them came first
        reaped_now, kept = together(partial(reap, store, job.id, beat=1), partial(store.commit, mine, result()))
        assert kept == (not reaped and not reaped_now)
        outcomes[reaped, reaped_now] += 1
        check(store, job.id)
        run_out(store)
        assert check(store, job.id).state is JobState.SUCCEEDED
    assert outcomes


def test_two_reapers_take_back_once(store: Store) -> None:
    for _ in range(ROUNDS):
        job = submit(store, 1)
        claim(store)
        assert sorted(together(*3 * [partial(reap, store, job.id, beat=0)])) == [False, False, True]
        assert store.shard(job.id, 0).failures == 1
        store.cancel(job.id)


def test_everything_at_once(store: Store) -> None:
    """Workers, a reaper, and a person who keeps cancelling and retrying, on one job."""
    job = submit(store, 40)

    def work(name: str) -> None:
        for n in range(40):
            mine = try_claim(store, name)
            if mine is None:
                continue
            store.beat(mine, sequences=1, tokens=n)
            if n % 5 == 1:
                store.fail(mine, "boom", limit=LIMIT)
            elif n % 5 == 2:
                store.hand_back(mine, "stopping")
            else:
                store.commit(mine, result())

    def reap_all() -> None:
        for _ in range(15):
            for shard, _worker in store.running_beats():
                key = (shard.job_id, shard.index, shard.attempt)
                store.reap(*key, beat=shard.beat, reason="silent", limit=LIMIT)

    def person() -> None:
        for _ in range(15):
            for act in (store.cancel, store.retry):
                with suppress(WrongState):
                    act(job.id)

    together(partial(work, "w1"), partial(work, "w2"), reap_all, person)
    check(store, job.id)
    for shard, _ in store.running_beats():
        store.reap(shard.job_id, shard.index, shard.attempt, beat=shard.beat, reason="silent", limit=99)
    if check(store, job.id).state.ended and store.job(job.id).state is not JobState.SUCCEEDED:
        store.retry(job.id)
    run_out(store)
    assert check(store, job.id).done_shards == 40
