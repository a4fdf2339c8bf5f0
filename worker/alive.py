"""`python -m worker.alive`: has a worker of this host shown itself lately? A container's health check, by exit code."""

from __future__ import annotations

import socket
import sys

from jobs.errors import SeqprocError
from jobs.processes import is_dead
from jobs.settings import Settings
from jobs.store import Store

_SILENT = 60.0  # seconds: a worker shows itself about every second, whether it works, loads a model or waits


def why_not() -> str | None:
    """What is wrong, in a sentence; None if a worker of this host is alive."""
    try:
        store = Store.open(Settings.load(), migrate=False)
        try:
            now, workers = store.clock(), store.workers()
        finally:
            store.close()
    except SeqprocError as error:
        return str(error)
    here = [worker for worker in workers if worker.host == socket.gethostname() and not is_dead(worker)]
    if not here:
        return f"no worker of {socket.gethostname()} is alive; start one with: seqproc worker"
    silent = now - max(worker.seen_at for worker in here)
    return f"no worker of {socket.gethostname()} has shown itself for {silent:.0f} s" if silent > _SILENT else None


if __name__ == "__main__":
    sys.exit(why_not())
