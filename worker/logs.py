"""A worker's log: one file a worker under the results root, one JSON object a line, so that `seqproc logs` can pick a
job's lines out of it from any machine; the same on stderr for whoever watches the worker itself. After a crash of
native code the file ends with Python's words about it, which `jobs.logs.last_words` reads."""

from __future__ import annotations

import faulthandler
import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_ATTEMPT: ContextVar[dict[str, Any]] = ContextVar("attempt", default={})  # noqa: B039  never mutated, only replaced
_PACKAGES = ("jobs", "worker", "sequence_processing", "rlp_datasets")


@contextmanager
def logging_for(job: str, shard: int, attempt: int) -> Iterator[None]:
    """Lines logged in this context, in this thread, belong to the attempt."""
    token = _ATTEMPT.set({"job": job, "shard": shard, "attempt": attempt})
    try:
        yield
    finally:
        _ATTEMPT.reset(token)


class _JsonLines(logging.Formatter):
    def __init__(self, worker_id: str) -> None:
        super().__init__()
        self._worker_id = worker_id

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "worker": self._worker_id,
            **_ATTEMPT.get(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def log_to(file: Path, worker_id: str, *, quiet: bool) -> None:
    """Send this process's log to `file` and, unless quiet, to stderr."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [logging.FileHandler(file, encoding="utf-8", errors="replace")]
    handlers[0].setFormatter(_JsonLines(worker_id))
    if not quiet:
        handlers.append(logging.StreamHandler())
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    for package in _PACKAGES:
        logger = logging.getLogger(package)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        for handler in handlers:
            logger.addHandler(handler)
    faulthandler.enable(file.open("ab", buffering=0))
