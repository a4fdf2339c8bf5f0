"""The order in which shards were done: whole numbers from 1, whoever commits them and however they race."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from jobs.states import ShardState
from jobs.store import Store
from tests.contract.helpers import check, claim, result, run_out, submit, try_claim


def order(store: Store, job_id: str) -> list[int]:
    return [shard.index for shard in store.done_after(job_id, 0, limit=100)]


def test_as_they_were_committed(store: Store) -> None:
    job = submit(store, 4)
    claims = [claim(store) for _ in range(4)]
    for number in (2, 0, 3):
        assert store.commit(claims[number], result())
    assert order(store, job.id) == [2, 0, 3]
    assert [shard.index for shard in store.done_after(job.id, 1, limit=1)] == [0]
    assert store.commit(claims[0], result()) is False, "once done, always that file"
    store.commit(claims[1], result())
    assert order(store, job.id) == [2, 0, 3, 1]
    assert [shard.done_order for shard in store.shards(job.id)] == [2, 4, 1, 3]


def test_a_retry_goes_on_counting(store: Store) -> None:
    job = submit(store, 3)
    store.fail(claim(store), "boom", limit=1)
    store.commit(claim(store), result())
    store.cancel(job.id)
    before = store.done_after(job.id, 0, limit=9)
    store.retry(job.id)
    assert store.done_after(job.id, 0, limit=9) == before
    run_out(store)
    assert order(store, job.id) == [1, 0, 2]
    assert all(shard.state is ShardState.DONE for shard in store.shards(job.id))
    check(store, job.id)


def test_commits_that_race(store: Store) -> None:
    job = submit(store, 24)

    def work(name: str) -> None:
        while (taken := try_claim(store, name)) is not None:
            assert store.commit(taken, result())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "abcd"))
    assert sorted(shard.done_order or 0 for shard in store.shards(job.id)) == list(range(1, 25))
    assert [shard.done_order for shard in store.done_after(job.id, 0, limit=99)] == list(range(1, 25))
