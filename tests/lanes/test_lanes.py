"""What holds in every lane. Workers poll once an hour here: what they hear in time, they were told."""

from __future__ import annotations

from tests.lanes.lane import SHARDS, Lane


def test_an_idle_worker_drains_a_job_hears_of_a_cancel_and_of_a_retry(lane: Lane) -> None:
    lane.start()
    lane.until_done(lane.submit())
    lane.hold()
    job = lane.submit()
    lane.until(lambda: job.refresh().running_shards == 1)
    job.cancel()
    lane.until(lambda: job.refresh().state.ended)
    assert (job.record.state, job.record.cancelled_shards) == ("cancelled", SHARDS)
    lane.release()
    job.retry()
    lane.until_done(job)


def test_two_workers_share_a_job(lane: Lane) -> None:
    for _ in range(2):
        lane.start()
    lane.hold()
    job = lane.submit()
    lane.until(lambda: job.refresh().running_shards == 2)
    lane.release()
    lane.until_done(job)
    assert len(lane.store.job_workers(job.id)) == 2


def test_a_worker_that_leaves_under_load_hands_back_and_another_goes_on(lane: Lane) -> None:
    first = lane.start()
    lane.hold()
    job = lane.submit()
    lane.until(lambda: job.refresh().running_shards == 1)
    first.leave()
    record = job.refresh()
    assert (record.running_shards, record.pending_shards) == (0, SHARDS)
    assert lane.store.workers() == []
    assert [attempt.outcome for attempt in lane.store.attempts(job.id)] == ["handed back"]
    lane.release()
    lane.start()
    lane.until_done(job)
    assert all(shard.failures == 0 for shard in lane.store.shards(job.id))


def test_a_queue_is_served_by_its_own_workers_only(lane: Lane) -> None:
    lane.start(queues=["a", "b"])
    other = lane.submit(queue="c")
    for queue in ("a", "b"):
        lane.until_done(lane.submit(queue=queue))
    assert other.refresh().pending_shards == SHARDS
