"""What an idle drain waits on until it looks again. Whatever rings or does not, it looks when its poll is due.

Nothing hangs on a bell: one that rings too often, too late or never costs time, never a shard.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

from jobs.doorbell import needs
from jobs.errors import StoreError, UsageError
from jobs.settings import Settings
from jobs.store import Store
from jobs.store.changes import Changes
from worker.stop import Stop

_GLANCE = 0.02  # seconds between looks at whether the database has changed
_SLICE = 0.1  # seconds: how late a waiting drain hears that it shall stop


class Bell:
    """Never rings: the poll is all there is."""

    def wait(self, stop: Stop, seconds: float, claimable: Callable[[], bool]) -> None:
        """Until it rings, `stop` is set, or so many seconds have passed.

        `claimable` tells whether there is a shard for this drain; it reads the database and may raise StoreError.
        """
        stop.wait(seconds)


class WatchingBell(Bell):
    """Rings when the database was written to and there is something to claim.

    Not at every change: idle workers write, too (that they live), and would keep each other awake.
    """

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    def wait(self, stop: Stop, seconds: float, claimable: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
            if self._changes.seen() and _true(claimable):
                return
            time.sleep(min(left, _GLANCE))


class RungBell(Bell):
    """Rung by another thread. A ring while nobody waits is heard by the next wait."""

    def __init__(self) -> None:
        self._rung = threading.Event()  # never touched by a signal handler: see worker.stop

    def ring(self) -> None:
        self._rung.set()

    def wait(self, stop: Stop, seconds: float, claimable: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while not stop.is_set() and (left := deadline - time.monotonic()) > 0:
            if self._rung.wait(min(left, _SLICE)):
                break
        self._rung.clear()


@contextmanager
def the_bell(store: Store, settings: Settings, queues: Sequence[str]) -> Iterator[Bell]:
    """The bell that fits the settings: Redis where it is named, else the database's own changes, else none.

    Raises UsageError if Redis is named and what it needs is not installed.
    """
    if settings.redis_url:
        try:
            from worker.doorbell import listening
        except ModuleNotFoundError as error:
            raise UsageError(needs(error.name)) from None
        with listening(settings.redis_url, store.store_id, queues) as bell:
            yield bell
    elif (changes := store.changes()) is not None:
        with closing(changes):
            yield WatchingBell(changes)
    else:
        yield Bell()


def _true(claimable: Callable[[], bool]) -> bool:
    try:
        return claimable()
    except StoreError:
        return True  # the drain's own look will say what is wrong, and wait
