"""Workers that go on with a shard that is not theirs any more: refused, and only their own file removed."""

from __future__ import annotations

import signal

from jobs.client import JobHandle
from jobs.gc import collect
from jobs.records import Claim
from tests.faults.conftest import TWELVE, Lab, Puppet, assert_complete, on_both


def claim_of(lab: Lab, job: JobHandle) -> Claim:
    """The only running claim."""
    (shard,) = lab.client.store.shards(job.id, states=["running"])
    return Claim(lab.client.store.job(job.id), shard, shard.worker_id or "")


def files_of(lab: Lab, job: JobHandle, claim: Claim) -> list[str]:
    """What the attempt has on disk."""
    return [name for name in lab.files(job) if f"shard-{claim.shard.index:06d}-a{claim.shard.attempt:03d}-" in name]


def assert_refused(lab: Lab, job: JobHandle, zombie: Puppet, claim: Claim) -> None:
    """The zombie itself removes what it wrote, and serves on."""
    lab.until(lambda: files_of(lab, job, claim) == [])
    assert zombie.wait(120) == 0, zombie.words
    assert "came too late" in zombie.words


@on_both
def test_stopped_past_its_lease_between_file_and_commit(lab: Lab) -> None:
    job = lab.submit()
    zombie = lab.puppet("written:wait:2")
    lab.until(lambda: zombie.waits)
    lab.freeze(zombie)
    claim = claim_of(lab, job)
    assert len(files_of(lab, job, claim)) == 1
    assert lab.puppet().wait(120) == 0
    assert job.refresh().state == "succeeded"
    assert len(files_of(lab, job, claim)) == 1, "the process may live, so nobody else removes it but gc"
    zombie.go_on()
    zombie.send_signal(signal.SIGCONT)
    assert_refused(lab, job, zombie, claim)
    assert lab.outcomes(job) == ["done", "reaped", *["done"] * 5]
    assert_complete(lab, job, TWELVE)


@on_both
def test_handed_back_and_claimed_again_while_the_first_still_writes(lab: Lab) -> None:
    job = lab.submit()
    slow = lab.puppet("writing:wait:2")
    lab.until(lambda: slow.waits)
    claim = claim_of(lab, job)
    assert [name.startswith("shards/.shard-") for name in files_of(lab, job, claim)] == [True], "half-written"
    lab.client.store.hand_back(claim, "for the test")
    assert lab.puppet().wait(120) == 0
    slow.go_on()
    assert_refused(lab, job, slow, claim)
    assert lab.outcomes(job) == ["done", "handed back", *["done"] * 5]
    assert_complete(lab, job, TWELVE)


def test_what_gc_took_from_under_the_first_is_no_fault_of_its_machine(lab: Lab) -> None:
    job = lab.submit()
    slow = lab.puppet("writing:wait:2", command=["worker"])
    lab.until(lambda: slow.waits)
    claim = claim_of(lab, job)
    lab.client.store.hand_back(claim, "for the test")
    assert lab.puppet().wait(120) == 0
    assert collect(lab.client.store, lab.settings).files == 1
    other = lab.submit()
    slow.go_on()
    lab.until(lambda: other.refresh().state.ended, seconds=10)  # a machine at fault would pause for longer
    slow.terminate()
    assert slow.wait(120) == 0, slow.words
    assert "not attempt 1's any more" in slow.words
    assert_complete(lab, job, TWELVE)
    assert_complete(lab, other, TWELVE)


@on_both
def test_retry_while_a_zombie_runs(lab: Lab) -> None:
    job = lab.submit("p0", "p1")
    zombie = lab.puppet("written:wait")
    lab.until(lambda: zombie.waits)
    lab.freeze(zombie)
    claim, reaper = claim_of(lab, job), lab.client.reaper()
    job.cancel()
    lab.until(lambda: bool(reaper.look()) or job.refresh().state.ended)
    assert job.refresh().state == "cancelled"
    job.retry()
    successor = lab.puppet("written:wait")  # its heart beats
    lab.until(lambda: successor.waits)
    zombie.go_on()
    zombie.send_signal(signal.SIGCONT)
    lab.until(lambda: files_of(lab, job, claim) == [])
    assert (job.refresh().running_shards, job.record.done_shards) == (1, 0)
    successor.go_on()
    assert successor.wait(120) == 0
    assert_refused(lab, job, zombie, claim)
    assert lab.outcomes(job) == ["reaped", "done"]
    assert_complete(lab, job, TWELVE[:4])
