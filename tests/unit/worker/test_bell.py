"""What wakes an idle drain, and what does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import StoreError
from jobs.processes import this_process
from jobs.settings import Settings
from jobs.store import Store
from jobs.store.changes import Changes
from worker.bell import RungBell, WatchingBell, the_bell
from worker.stop import Stop

FOR_EVER = 60.0  # seconds: a wait that lasts so long has failed


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store.open(Settings(home=tmp_path / "home"))
    yield made
    made.close()


@pytest.fixture
def changes(store: Store) -> Iterator[Changes]:
    made = store.changes()
    assert made is not None
    yield made
    made.close()


def write(store: Store) -> None:
    store.register_worker("w", this_process(), queues=["default"])


def waits(bell: WatchingBell | RungBell, seconds: float = FOR_EVER, *, stop: Stop | None = None) -> float:
    """How long a wait took; everything is claimable."""
    began = time.monotonic()
    bell.wait(stop or Stop(), seconds, lambda: True)
    return time.monotonic() - began


def test_changes_are_commits_of_others_since_the_last_look(store: Store, changes: Changes) -> None:
    assert not changes.seen()
    write(store)
    assert changes.seen()
    assert not changes.seen()
    store.workers()
    assert not changes.seen(), "reading is no change"


def test_a_commit_during_the_wait_or_before_it_ends_it(store: Store, changes: Changes) -> None:
    bell = WatchingBell(changes)
    write(store)
    assert waits(bell) < FOR_EVER
    threading.Timer(0.1, write, [store]).start()
    assert waits(bell) < FOR_EVER


def test_changes_that_leave_nothing_to_claim_wake_nobody(store: Store, changes: Changes) -> None:
    asked: list[bool] = []

    def claimable() -> bool:
        asked.append(True)
        return False

    write(store)
    began = time.monotonic()
    WatchingBell(changes).wait(Stop(), 0.2, claimable)
    assert time.monotonic() - began >= 0.2
    assert len(asked) == 1, "asked only when something has changed"


def test_a_database_that_does_not_answer_is_left_to_the_drain(store: Store, changes: Changes) -> None:
    def away() -> bool:
        raise StoreError("the database does not answer")

    write(store)
    WatchingBell(changes).wait(Stop(), FOR_EVER, away)


@pytest.mark.parametrize("kind", ["watching", "rung"])
def test_a_stop_ends_every_wait(kind: str, changes: Changes) -> None:
    stop = Stop()
    threading.Timer(0.1, stop.set).start()
    assert waits(WatchingBell(changes) if kind == "watching" else RungBell(), stop=stop) < FOR_EVER


def test_a_ring_is_heard_once_by_the_next_wait() -> None:
    bell = RungBell()
    bell.ring()
    bell.ring()
    assert waits(bell) < FOR_EVER
    assert waits(bell, 0.2) >= 0.2


def test_the_bell_follows_the_settings(store: Store, tmp_path: Path) -> None:
    with the_bell(store, Settings(home=tmp_path / "home"), ["default"]) as bell:
        assert isinstance(bell, WatchingBell)
