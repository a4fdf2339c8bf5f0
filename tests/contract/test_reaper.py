"""The reaper, with a clock that the test winds and processes that it kills."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

from jobs.processes import ProcessName, process_named, this_process
from jobs.reaper import Reaper
from jobs.states import ShardState
from jobs.store import Store
from tests.clock import Clock
from tests.contract.helpers import check, claim, submit

LEASE = 30.0
ELSEWHERE = ProcessName("another-host", 1, 1e9, "another-boot")


def wind(reaper: Reaper, clock: Clock, seconds: float) -> int:
    """Let time pass while the reaper looks now and then; how many shards it took back."""
    reaped = 0
    while seconds > 0:
        step = min(seconds, LEASE / 4)
        clock.now += step
        reaped += reaper.look()
        seconds -= step
    return reaped


def test_a_heart_that_stands_still_for_the_lease(store: Store) -> None:
    job = submit(store, 2)
    store.register_worker("silent", ELSEWHERE, queues=["default"])
    silent, alive = claim(store, "silent"), claim(store, "alive")
    clock = Clock()
    reaper = Reaper(store, LEASE, limit=3, clock=clock)
    for _ in range(4):
        store.beat(alive, sequences=0, tokens=0)
        assert reaper.look() == 0
        clock.now += LEASE / 4
    store.beat(alive, sequences=0, tokens=0)
    assert reaper.look() == 1
    assert reaper.look() == 0
    shard = store.shard(job.id, silent.shard.index)
    assert (shard.state, shard.failures, shard.error) == (
        ShardState.PENDING,
        1,
        "worker silent has not answered for 30 s",
    )
    assert store.shard(job.id, alive.shard.index).state is ShardState.RUNNING
    assert [w.id for w in store.workers()] == ["silent"]  # of another host nothing more is known
    check(store, job.id)


def test_a_beat_starts_the_lease_anew(store: Store) -> None:
    submit(store, 1)
    mine = claim(store)
    clock = Clock()
    reaper = Reaper(store, LEASE, limit=3, clock=clock)
    assert reaper.look() == 0
    assert wind(reaper, clock, LEASE - 1) == 0
    store.beat(mine, sequences=0, tokens=0)
    assert reaper.look() == 0
    assert wind(reaper, clock, LEASE - 1) == 0
    assert wind(reaper, clock, 1) == 1


def test_a_reaper_that_could_not_look_starts_counting_anew(store: Store) -> None:
    """Stopped itself, or with the database away, it could have heard no heart."""
    submit(store, 1)
    claim(store)
    clock = Clock()
    reaper = Reaper(store, LEASE, limit=3, clock=clock)
    assert reaper.look() == 0
    clock.now += 10 * LEASE
    assert reaper.look() == 0
    assert wind(reaper, clock, LEASE - 1) == 0
    assert wind(reaper, clock, 1) == 1


def test_a_new_attempt_has_a_new_lease(store: Store) -> None:
    submit(store, 1)
    first = claim(store)
    clock = Clock()
    reaper = Reaper(store, LEASE, limit=3, clock=clock)
    reaper.look()
    store.hand_back(first, "stopping")
    claim(store)
    assert wind(reaper, clock, LEASE / 4) == 0, "seen for the first time"
    assert wind(reaper, clock, LEASE - 1) == 0
    assert wind(reaper, clock, 1) == 1


def test_a_dead_process_is_known_at_once(store: Store) -> None:
    job = submit(store, 2)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    store.register_worker("child", process_named(child.pid), queues=["default"])
    store.register_worker("me", this_process(), queues=["default"])
    claim(store, "child")
    claim(store, "me")
    reaper = Reaper(store, LEASE, limit=3)
    assert reaper.look() == 0
    child.kill()
    child.communicate()
    assert reaper.look() == 1
    assert [w.id for w in store.workers()] == ["me"]
    error = store.shard(job.id, 0).error
    assert error is not None
    assert error.startswith(f"worker child died (process {child.pid} on")
    assert store.shard(job.id, 1).state is ShardState.RUNNING


def test_a_reused_pid_is_another_process(store: Store) -> None:
    submit(store, 1)
    store.register_worker("before", replace(this_process(), process_started=1e9), queues=["default"])
    claim(store, "before")
    assert Reaper(store, LEASE, limit=3).look() == 1
    assert store.workers() == []
