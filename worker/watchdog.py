"""Ends a worker that hangs: writes down where every thread stands, and leaves without ceremony.

Only `seqproc worker` starts one, never a user's process. Its shards are then reaped as those of any dead worker. A
waiting worker is not watched, and loading a model may take far longer than a step. A hung worker cannot be ended in
order: the thread that would have to return is the one that hangs.

Two ways, since a native call may hang while it holds the GIL, and then no Python runs at all:
· a thread looks at the vitals, tells log and stderr, and leaves by `os._exit(EXIT_CODE)`;
· two timers that need no GIL, set when work begins and put off by each of the thread's looks: one writes the stacks to
  the log, the other writes them to stderr and ends the process by SIGALRM. They go off when the thread itself could not
  run for twice the limit.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from worker.vitals import Vitals

log = logging.getLogger(__name__)

EXIT_CODE = 70  # EX_SOFTWARE: neither 1, which says why in a sentence, nor a signal's
LOADING_SECONDS = 4 * 3600.0  # 140 GB at 10 MB/s, which is slow and no hang
_LOOKS = 16  # within the limit
_AFTER_STACKS = 0.5  # seconds for the stacks to be written before the process ends


class Watchdog:
    """Watches while used as a context manager."""

    def __init__(
        self, vitals: Vitals, seconds: float, log_file: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`seconds` without progress are the limit; `log_file`: the worker's log."""
        self._vitals, self._log_file, self._clock = vitals, log_file, clock
        self._seconds = seconds
        self._left = threading.Event()
        self._looked_at = clock()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        # A descriptor of its own for faulthandler, which no lock of logging is in the way of.
        self._stacks = self._log_file.open("ab", buffering=0)
        with suppress(OSError, ValueError, AttributeError):  # no stderr to write to: the default ends the process, too
            faulthandler.register(signal.SIGALRM, file=sys.stderr, all_threads=True, chain=True)
        faulthandler.enable(file=self._stacks, all_threads=True)  # what a crash in native code was doing, likewise
        self._vitals.on_change = self._set_timers
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()
        self._vitals.on_change = lambda: None
        self._clear_timers()
        faulthandler.unregister(signal.SIGALRM)
        faulthandler.disable()
        self._stacks.close()

    @property
    def _limit(self) -> float:
        return max(self._seconds, LOADING_SECONDS) if self._vitals.loading else self._seconds

    def _run(self) -> None:
        while not self._left.wait(self._seconds / _LOOKS):
            if self.hangs():
                self._vitals.context.run(self._leave)
            self._set_timers()

    def hangs(self) -> bool:
        """Whether the work stands still for too long. If nobody looked for half the limit, the process or its machine
        was stopped, nobody could have got any further, and the time counts anew."""
        now, limit = self._clock(), self._limit
        if now - self._looked_at > limit / 2:
            self._vitals.count_anew()
        self._looked_at = now
        return self._vitals.working and self._vitals.still > limit

    def _set_timers(self) -> None:
        if not self._vitals.working:
            self._clear_timers()
            return
        seconds = 2 * self._limit
        faulthandler.dump_traceback_later(seconds, file=self._stacks)
        signal.setitimer(signal.ITIMER_REAL, seconds + _AFTER_STACKS)

    def _clear_timers(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _leave(self) -> None:
        """The last words. Should even they hang, the timers are still armed."""
        doing = "in loading a model" if self._vitals.loading else "at its work"
        sentence = f"no progress for {self._vitals.still:.0f} s {doing}: this worker ends itself"
        try:
            with suppress(Exception):
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
            log.critical(sentence, extra={"stacks": stacks()})
            print(f"Error: {sentence}; its stacks are in {self._log_file}", file=sys.stderr, flush=True)
        finally:
            os._exit(EXIT_CODE)


def stacks() -> str:
    """Where every thread of this process stands, by name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
