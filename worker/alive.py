"""`python -m worker.alive`: has a worker of this host shown itself lately? A container's health check, by exit code."""

from __future__ import annotations

import socket
import sys
from contextlib import closing

from jobs.errors import SeqprocError
from jobs.presence import SILENT_SECONDS, alive
from jobs.settings import Settings
from jobs.store import Store


def why_not() -> str | None:
    """What is wrong, in a sentence; None if a worker of this host is alive."""
    try:
        with closing(Store.open(Settings.load(), migrate=False)) as store:
            living = alive(store)
    except SeqprocError as error:
        return str(error)
    if any(worker.host == socket.gethostname() for worker in living):
        return None
    return (
        f"no worker of {socket.gethostname()} has shown itself within {SILENT_SECONDS:.0f} s; start one with: "
        "seqproc worker"
    )


if __name__ == "__main__":
    sys.exit(why_not())
