"""The thread that keeps a shard's lease alive while the core computes.

It raises the shard's counter, stores progress and brings back whether to go on. It never decides the shard's fate: a
database that is away for a while only means that nothing is known; the commit will tell. While it is awake it also
looks after the shards of others: a worker with long shards must not leave a dead one's waiting.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from jobs.errors import StoreError
from jobs.records import Claim
from jobs.store import Store
from worker.metrics import SEQUENCES, TOKENS
from worker.stop import Stop
from worker.vitals import Vitals

log = logging.getLogger(__name__)


class ShardStopped(Exception):
    """The running shard must not go on. Base of the reasons."""


class Cancelled(ShardStopped):
    """Its job is being cancelled."""


class Stopping(ShardStopped):
    """This worker was asked to leave."""


class LeaseLost(ShardStopped):
    """The shard is not this attempt's any more: whatever was made of it is void."""


class Heartbeat:
    """Beats for one claim while used as a context manager; `step` counts and is where a stop is raised."""

    def __init__(
        self, store: Store, claim: Claim, seconds: float, stop: Stop, vitals: Vitals, look: Callable[[], object]
    ) -> None:
        self._store, self._claim, self._seconds, self._stop = store, claim, seconds, stop
        self._vitals, self._look = vitals, look
        self._left = threading.Event()
        self._deaf = False
        self._verdict: type[ShardStopped] | None = None
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.tokens = 0
        self.sequences = 0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(time.monotonic() - self._started, 1e-9)

    def step(self, tokens: int, sequences: int) -> None:
        """Count what was made since the last step; raises ShardStopped when the shard must not go on."""
        self._vitals.moved()
        self.tokens += tokens
        self.sequences += sequences
        TOKENS.inc(tokens)
        SEQUENCES.inc(sequences)
        self.check()

    def check(self) -> None:
        """Raise ShardStopped when the shard must not go on."""
        if self._verdict is not None:
            raise self._verdict
        if self._stop.is_set():
            raise Stopping

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """While the main thread can hear nothing, as when a model loads for minutes, this thread acts for it: a cancel
        or a stop hands the shard back at once, and the main thread finds it gone when it comes back."""
        self._deaf = True
        try:
            with self._vitals.at_loading():
                yield
        finally:
            self._deaf = False
        self.check()

    def _run(self) -> None:
        while not self._left.wait(self._seconds):
            try:
                if self._beat():
                    return
                self._look()
            except StoreError as error:
                log.warning("no heartbeat: %s", error)
            except Exception:  # a lease that ends because of a bug in looking after others would be the greater harm
                log.exception("the heartbeat goes on")

    def _beat(self) -> bool:
        """One beat; True if there is nothing left to beat for."""
        worker = {"tokens_per_second": self.tokens_per_second, **self._vitals.memory}
        beat = self._store.beat(self._claim, sequences=self.sequences, tokens=self.tokens, **worker)
        if beat.lost:
            self._verdict = LeaseLost
        elif beat.cancel:
            self._verdict = Cancelled
        if self._deaf and not beat.lost and (beat.cancel or self._stop.is_set()):
            self._store.hand_back(self._claim, "cancelled" if beat.cancel else "stopping")
            self._verdict = LeaseLost
        return self._verdict is LeaseLost
