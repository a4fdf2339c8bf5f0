"""Ringing workers: an idle one that hears it looks at once and need not wait for its next poll.

The row is the job, and a ring only saves time: one that fails is no failure, and one that hangs is left alone. What
rings is loaded by the entry point `seqproc.doorbell`, and only where SEQPROC_REDIS_URL is set.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import entry_points

from jobs.errors import SeqprocError, UsageError
from jobs.redact import without_credentials
from jobs.settings import Settings
from jobs.store import Store

_PATIENCE = 3.0  # seconds that a submit waits for Redis

Ringer = Callable[[str, int], None]  # (queue, times); may block, may raise anything


class Doorbell:
    """Rings the idle workers of one database."""

    def __init__(self, store: Store, settings: Settings, *, patience: float = _PATIENCE) -> None:
        """`patience`: seconds that a ring may take before it is left alone."""
        self._store, self._url, self._patience = store, settings.redis_url, patience
        self._hand: threading.Thread | None = None
        self._idle = 0  # workers of the queue for which it was made ready

    def make_ready(self, queue: str) -> None:
        """All of a ring for this queue that can be done before there is something to ring for. Never raises."""
        if not self._url:
            return
        with suppress(SeqprocError):  # the ring will say it
            self._idle = self._store.idle_workers(queue)
            load_ringer(self._url, self._store.store_id)

    def ring(self, queue: str, pending: int) -> str | None:
        """Ring once for each pending shard, but no more often than the queue has idle workers.

        Returns why that was not possible, if so. Never raises, and returns once its patience is at an end.
        """
        if not self._url or not pending:
            return None
        if self._hand is not None and self._hand.is_alive():
            return "Redis still owes an answer to the last ring"
        try:
            times = min(pending, self._idle or self._store.idle_workers(queue))
            self._idle = 0
            if not times:
                return None
            ringer = load_ringer(self._url, self._store.store_id)
        except SeqprocError as error:
            return str(error)
        return self._within_patience(lambda: ringer(queue, times))

    def _within_patience(self, ring: Callable[[], None]) -> str | None:
        failed: list[str] = []

        def hand() -> None:
            try:
                ring()
            except Exception as error:
                failed.append(_cause(error, self._url))

        self._hand = threading.Thread(target=hand, name="ring", daemon=True)
        self._hand.start()
        self._hand.join(self._patience)
        if self._hand.is_alive():
            return f"Redis has not answered for {self._patience:g} s"
        return failed[0] if failed else None


@cache
def load_ringer(redis_url: str, store_id: str) -> Ringer:
    """What rings through this Redis. Raises UsageError if what it needs is not installed."""
    for entry in entry_points(group="seqproc.doorbell"):
        try:
            ringer: Ringer = entry.load()(redis_url, store_id)
        except ModuleNotFoundError as error:
            raise UsageError(needs(error.name)) from None
        return ringer
    raise UsageError(needs("worker"))


def needs(package: str | None) -> str:
    """The sentence for a package that is not there."""
    return f"SEQPROC_REDIS_URL is set, and that needs the package {package}; install sequence-processor[redis]"


def _cause(error: Exception, url: str) -> str:
    line = " ".join(str(error).split()) or type(error).__name__
    return f"Redis took no ring: {without_credentials(line, url)}"
