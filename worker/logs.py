"""A worker's log: one file a worker under the results root, one JSON object a line, so that `seqproc logs` can pick a
job's lines out of it from any machine; the same on stderr for whoever watches the worker itself. After a crash or
a hang of native code the file ends with Python's words about it, which `jobs.logs.last_words` reads."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from jobs.files import make_folder, writing
from jobs.log_lines import JsonLines, on_stderr, send

_ATTEMPT: ContextVar[dict[str, Any]] = ContextVar("attempt", default={})  # noqa: B039  never mutated, only replaced
_LEVELS = dict.fromkeys(("jobs", "worker", "sequence_processing", "rlp_datasets"), logging.INFO)
_LEVELS |= dict.fromkeys(("celery", "kombu"), logging.WARNING)


@contextmanager
def logging_for(job: str, shard: int, attempt: int) -> Iterator[None]:
    """Lines logged in this context, in this thread, belong to the attempt."""
    token = _ATTEMPT.set({"job": job, "shard": shard, "attempt": attempt})
    try:
        yield
    finally:
        _ATTEMPT.reset(token)


class _File(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A line that finds no room is lost; whatever else does not, says so in a sentence and not in a traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def log_to(file: Path, worker_id: str, *, quiet: bool) -> None:
    """Send this process's log to `file` and, unless quiet, to stderr. Raises ResultsError if it cannot be written."""
    make_folder(file.parent)
    lines = JsonLines(lambda: {"worker": worker_id, **_ATTEMPT.get()})
    with writing(file):
        to_file = _File(file, encoding="utf-8", errors="replace")
    to_file.setFormatter(lines)
    send(_LEVELS, [to_file] if quiet else [to_file, on_stderr(lines)])
