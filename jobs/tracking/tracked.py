"""A job that is followed, told of to a tracker meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.errors import SeqprocError
from jobs.redact import without_credentials
from jobs.report import report
from jobs.tracking import sender
from jobs.tracking.figures import of_progress, of_report, run_of
from jobs.tracking.names import require
from jobs.tracking.sender import Sender, Tell
from jobs.tracking.tracker import Figures

if TYPE_CHECKING:
    from jobs.client import JobHandle
    from jobs.progress import Progress

_EVERY = 5.0  # seconds between figures of a job that goes on
_LEAVING = 5.0  # seconds that a tracker has after Ctrl-C

_log = logging.getLogger(__name__)


@contextmanager
def tracked(job: JobHandle, name: str | None, tell: Tell = _log.log) -> Iterator[Callable[[Progress], None]]:
    """What to call with each progress, so that the tracker of this name hears of it; without a name, nothing does.

    A job that has ended when this is left has its report sent as well. Its run continues the one that was begun
    under the same job before. Progress is sent every few seconds, at the number of sequences that are made.

    Raises UsageError if there is no such tracker, or it is not installed. What goes wrong later is told, never raised.
    """
    if name is None:
        yield lambda _progress: None
        return
    require(name)
    tracking = _Tracking(job, Sender(name, run_of(job.record), tell), tell)
    limit = sender.LIMIT
    try:
        yield tracking.look
    except KeyboardInterrupt:
        limit = _LEAVING
        raise
    finally:
        tracking.end(limit)


class _Tracking:
    def __init__(self, job: JobHandle, sender: Sender, tell: Tell) -> None:
        self._job, self._sender, self._tell = job, sender, tell
        self._next = 0.0
        self._last: Progress | None = None

    def look(self, progress: Progress) -> None:
        self._sender.look()
        now = time.monotonic()
        moved = self._last is None or progress.tokens != self._last.tokens
        self._last = progress
        if moved and now >= self._next:
            self._next = now + _EVERY
            self._sender.offer(progress.sequences, of_progress(progress))

    def end(self, limit: float) -> None:
        """Send the last figures and close the run."""
        state = self._job.record.state
        if self._last is not None:
            figures = {**of_progress(self._last), **(self._report() if state.ended else {})}
            self._sender.offer(self._last.sequences, figures)
        self._sender.close(str(state), limit)

    def _report(self) -> Figures:
        try:
            return of_report(report(self._job))
        except (SeqprocError, OSError) as error:
            self._tell(
                logging.WARNING, f"the report on job {self._job.id} is not tracked: {without_credentials(str(error))}"
            )
            return {}
