"""How this worker is: whether it works, loads or waits, when it last got any further, and how full its device is.

Noted by the thread that computes; read by the heartbeat, which tells the database, and by the watchdog, where one runs.
Only the computing thread asks the device: while a CUDA graph is recorded no other thread may call CUDA, and a device
that hangs must not take the heartbeat along.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context

from worker.device import memory

_MEMORY_EVERY = 1.0  # seconds


class Vitals:
    """Plain notes without a lock: each is written by one thread, and any value that a reader may see was true."""

    def __init__(self, device: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        """`device`: torch's name of the device in use, empty while there is none."""
        self._device = device
        self._clock = clock
        self._moved_at = clock()
        self._asked_at = -_MEMORY_EVERY
        self.working = False
        self.loading = False
        self.on_change: Callable[[], object] = lambda: None  # called when one of these changes
        self.context: Context = copy_context()  # of the work, for whoever logs about it from another thread
        self.memory: dict[str, int | None] = {"memory_used": None, "memory_total": None}  # columns of the worker's row

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """From one look at the queues until nothing is left to do; outside of it the worker waits, which is no work."""
        self.moved()
        self.working = True
        self.on_change()
        try:
            yield
        finally:
            self.working = False
            self.on_change()

    @contextmanager
    def at_loading(self) -> Iterator[None]:
        """While a model is brought into memory: that takes minutes, and nothing tells how far it is."""
        self.moved()
        self.loading = True
        self.on_change()
        try:
            yield
        finally:
            self.moved()
            self.loading = False
            self.on_change()

    def moved(self) -> None:
        """The work got further. Called at every step of the core, so it must cost nothing."""
        self._moved_at = self._clock()
        self.context = copy_context()
        if self._moved_at - self._asked_at >= _MEMORY_EVERY:
            self._asked_at = self._moved_at
            used, total = memory(self._device())
            self.memory = {"memory_used": used, "memory_total": total}

    def count_anew(self) -> None:
        """Nobody could have got any further until now."""
        self._moved_at = self._clock()

    @property
    def still(self) -> float:
        """Seconds since the work last got further."""
        return self._clock() - self._moved_at
