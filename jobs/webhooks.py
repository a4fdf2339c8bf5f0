"""Telling the world that a job has ended: one signed POST, again with growing pauses until it is taken.

The row in `webhooks` was written by the transaction that ended the job, so no end is forgotten; whoever is alive
delivers it. An event may come twice, under one id (at least once). Nothing that happens here can harm a job or a
worker: each try is short, follows no redirect and reads nothing of the answer but its status.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from jobs.errors import JobNotFound, StoreError
from jobs.jsonl import finite
from jobs.records import Job, Webhook
from jobs.store import Store
from jobs.webhook_target import AllowedHosts, Place, Refused, Target

log = logging.getLogger(__name__)

FIRST_PAUSE = 20.0  # seconds after the first try, doubling
TRIES = 13  # 20 s × (2¹² − 1): 23 hours from the first to the last
_HOLD = 120.0  # seconds for which a try keeps others from the event; longer than any takes
_WHOLE = 30.0  # seconds for a try, from the question for the address to the status
_SILENCE = 5.0  # seconds to wait for a connection, or for the next bytes
_FIELDS = (
    *("id", "name", "labels", "owner", "kind", "model", "adapter", "state", "error", "revision"),
    *("num_prompts", "num_sequences", "done_sequences", "done_tokens", "prompt_errors"),
    *("created_at", "started_at", "ended_at"),
)


class NotTaken(Exception):
    """A try that came to nothing; the message says why."""


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """The header `Seqproc-Signature`: HMAC-SHA256 over `timestamp.body`, so that an old event is known to be old."""
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


def event_of(webhook: Webhook, job: Job) -> dict[str, Any]:
    """What is told, as plain data."""
    told = {name: getattr(job, name) for name in _FIELDS}
    return {"id": webhook.event_id, "type": "job.ended", "created_at": webhook.created_at, "job": finite(told)}


@dataclass(slots=True)
class Courier:
    """Delivers what is due, one event at a time."""

    store: Store
    hosts: AllowedHosts
    secret: str
    whole: float = _WHOLE
    _context: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def deliver_next(self) -> bool:
        """Try to deliver the event that is due for longest; False if none is. Raises StoreError."""
        webhook = self.store.claim_webhook(hold=_HOLD)
        if webhook is None:
            return False
        try:
            job = self.store.job(webhook.job_id)
            self._post(webhook, json.dumps(event_of(webhook, job)).encode())
        except (JobNotFound, StoreError):  # deleted meanwhile; or the database went away, and the event is due again
            return True
        except (NotTaken, Refused) as why:
            self._failed(webhook, str(why))
        except Exception as error:  # a row that cannot be read, a bug: this event's trouble and no other's
            log.exception("webhook %s", webhook.event_id)
            self._failed(webhook, f"{type(error).__name__}: {error}")
        else:
            self.store.webhook_delivered(webhook)
            log.info("webhook %s delivered", webhook.event_id)
        return True

    def _failed(self, webhook: Webhook, why: str) -> None:
        pause = FIRST_PAUSE * 2 ** (webhook.tries - 1) if webhook.tries < TRIES else None
        self.store.webhook_failed(webhook, why, pause)
        then = "given up" if pause is None else f"again in {pause:.0f} s"
        log.warning("webhook %s, try %d: %s; %s", webhook.event_id, webhook.tries, why, then)

    def _post(self, webhook: Webhook, body: bytes) -> None:
        """One try. Raises NotTaken or Refused."""
        target, deadline = Target.of(webhook.url), time.monotonic() + self.whole
        places = self.hosts.resolve(target)
        now = int(time.time())
        headers = {
            "Host": target.authority,
            "Content-Type": "application/json",
            "User-Agent": f"sequence-processor/{version('sequence-processor')}",
            "Seqproc-Event": webhook.event_id,
            "Seqproc-Signature": signature(self.secret, now, body),
            "Connection": "close",
        }
        try:
            with closing(self._connect(target, places, deadline)) as channel, _cut_at(deadline, channel):
                status = _exchange(target, channel, body, headers)
                if time.monotonic() >= deadline:
                    raise TimeoutError  # it was cut off, and what was read of it may not be all
        except TimeoutError:
            raise NotTaken(f"{target.authority} did not answer in time") from None
        except (OSError, http.client.HTTPException) as error:
            late = time.monotonic() >= deadline
            why = "did not answer in time" if late else f"cannot be told: {error or type(error).__name__}"
            raise NotTaken(f"{target.authority} {why}") from None
        if 300 <= status < 400:
            raise NotTaken(f"{target.authority} answered {status}, and redirects are not followed")
        if not 200 <= status < 300:
            raise NotTaken(f"{target.authority} answered {status}")

    def _connect(self, target: Target, places: list[Place], deadline: float) -> socket.socket:
        """A connection to the first of the addresses that takes one, hands not yet shaken. Raises OSError."""
        failure: OSError = TimeoutError()
        for family, place in places:
            patience = min(_SILENCE, deadline - time.monotonic())
            if patience <= 0:
                break
            channel = socket.socket(family, socket.SOCK_STREAM)
            channel.settimeout(patience)
            try:
                channel.connect(place)
                if target.scheme == "http":
                    return channel
                return self._context.wrap_socket(channel, server_hostname=target.host, do_handshake_on_connect=False)
            except OSError as error:
                failure = error
                channel.close()
        raise failure


def _exchange(target: Target, channel: socket.socket, body: bytes, headers: dict[str, str]) -> int:
    """Send the event; the status of the answer."""
    if isinstance(channel, ssl.SSLSocket):
        channel.do_handshake()
    connection = http.client.HTTPConnection(target.host, target.port)
    connection.auto_open = 0  # by itself it would ask for the address again
    connection.sock = channel
    connection.request("POST", target.path, body, headers)
    with connection.getresponse() as response:
        return response.status


@contextmanager
def _cut_at(deadline: float, channel: socket.socket) -> Iterator[None]:
    """Shut the connection down when its time is over: a byte now and then must not hold us for ever."""

    def cut() -> None:
        with suppress(OSError):
            socket.socket.shutdown(channel, socket.SHUT_RDWR)

    alarm = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
    alarm.daemon = True
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()
