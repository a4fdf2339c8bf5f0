"""The thread in which a worker tells of jobs that have ended, so that no shard waits for somebody else's server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from jobs.errors import StoreError
from jobs.settings import Settings
from jobs.store import Store
from jobs.webhook_target import AllowedHosts
from jobs.webhooks import Courier
from worker.stop import Stop

log = logging.getLogger(__name__)

_LAST_ROUND = 60.0  # seconds that a worker with nothing left to do gives to what is due, before it leaves


@contextmanager
def delivering(store: Store, settings: Settings, stop: Stop) -> Iterator[None]:
    """Deliver while the block runs. A worker that leaves because nothing is left tells of that first.

    Without hosts or without a secret nothing is delivered; the events wait for a worker that has them. Raises
    UsageError for a list of hosts that cannot be read.
    """
    hosts = AllowedHosts.of(settings.webhook_hosts)
    if not hosts.entries:
        yield
        return
    if settings.webhook_secret is None:
        log.warning("SEQPROC_WEBHOOK_SECRET is not set: this worker tells nobody, since nothing is told unsigned")
        yield
        return
    courier = Courier(store, hosts, settings.webhook_secret.get_secret_value())
    left = threading.Event()
    thread = threading.Thread(target=_run, args=(courier, settings.poll_seconds, left), name="webhooks", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
    if not stop.is_set():
        thread.join(_LAST_ROUND)
        _last_round(courier, stop)


def _run(courier: Courier, seconds: float, left: threading.Event) -> None:
    while not left.wait(seconds):
        try:
            while not left.is_set() and courier.deliver_next():
                pass
        except StoreError:  # the drain says so, and waits for the database as well
            pass
        except Exception:
            log.exception("webhooks go on")


def _last_round(courier: Courier, stop: Stop) -> None:
    deadline = time.monotonic() + _LAST_ROUND
    with suppress(StoreError):
        while not stop.is_set() and time.monotonic() < deadline and courier.deliver_next():
            pass
