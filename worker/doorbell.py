"""The doorbell: rings travel through Redis, by Celery; this is the only file that knows Celery.

A message carries a queue's name and nothing that matters: whoever hears one looks at the database. It is gone from
Redis once it is read, only JSON is taken, nothing is answered and nobody can be commanded. A worker takes messages only
while its drain is idle, so that a ring goes to one that has time.

A message of the wrong shape ends Celery's worker as a whole (its Request unpacks the body without a check). As nothing
is left to be delivered again, Celery is started anew and that was all.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from celery import Celery, bootsteps
from celery.loaders.app import AppLoader
from celery.worker import WorkController, state
from vine import ppartial

from worker.bell import RungBell
from worker.stop import Stop

log = logging.getLogger(__name__)

_TASK = "seqproc.ring"
_SOCKET_SECONDS = 3  # that Redis may take to answer
_HEALTH_SECONDS = 5  # that Redis may be silent where it owes an answer every second
_AGAIN_SECONDS = 1.0  # until Celery is started again after it ended by itself
_GIVE_WAY = 0.005  # seconds that Celery's thread leaves the interpreter to a drain that was rung
_LEAVE_SECONDS = 1.0  # that a leaving worker gives Celery; nothing would be lost if it gave none


class _Unconfigured(AppLoader):
    """Reads no module that CELERY_CONFIG_MODULE names."""

    def read_configuration(self, env: str = "") -> dict[str, Any]:
        return {}


class _Rings(Celery):
    """The app. Deaf to CELERY_* in the environment: those belong to other programs."""

    backend_cls = "disabled"

    def __init__(self, redis_url: str, store_id: str, **transport: Any) -> None:
        super().__init__("seqproc", loader=_Unconfigured, fixups=[], set_as_current=False)
        self._redis_url = redis_url
        self.conf.update(
            accept_content=["json"],
            result_accept_content=["json"],
            task_serializer="json",
            event_serializer="json",
            task_acks_late=False,
            task_ignore_result=True,
            worker_prefetch_multiplier=1,
            worker_enable_remote_control=False,
            worker_send_task_events=False,
            broker_connection_max_retries=None,  # for ever
            broker_connection_retry_on_startup=True,
            broker_channel_error_retry=True,
            broker_transport_options={
                "global_keyprefix": f"seqproc:{store_id}:",  # one Redis may serve several databases
                "priority_steps": [0],  # the database knows priorities
                "socket_timeout": _SOCKET_SECONDS,
                "socket_connect_timeout": _SOCKET_SECONDS,
                "health_check_interval": _HEALTH_SECONDS,
                **transport,
            },
        )

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        return super().connection_for_read(url or self._redis_url, **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        return super().connection_for_write(url or self._redis_url, **options)


def ringer(redis_url: str, store_id: str) -> Callable[[str, int], None]:
    """What rings: called with a queue and how often. It raises whatever kept Redis from taking it, after seconds.

    Loaded by the entry point `seqproc.doorbell`.
    """
    app = _sender(redis_url, store_id)

    def ring(queue: str, times: int) -> None:
        with app.producer_or_acquire() as producer:
            for _ in range(times):
                app.send_task(_TASK, (queue,), queue=queue, producer=producer, retry=False, ignore_result=True)

    return ring


@cache
def _sender(redis_url: str, store_id: str) -> _Rings:
    return _Rings(redis_url, store_id, max_retries=0)


@contextmanager
def listening(redis_url: str, store_id: str, queues: Sequence[str]) -> Iterator[RungBell]:
    """A bell that rings when Redis brings a message for one of the queues; for one at a time in a process.

    While Redis is away Celery tries again and again, in a thread that nobody waits for.
    """
    bell = _CeleryBell(_Rings(redis_url, store_id), queues)
    bell.start()
    try:
        yield bell
    finally:
        bell.leave()


class _CeleryBell(RungBell):
    """A Celery worker in a thread of its own, to which every message of its one task is a ring."""

    def __init__(self, app: _Rings, queues: Sequence[str]) -> None:
        super().__init__()
        self._idle = False
        self._nudge = ppartial(lambda: None)  # one for all wakings: of one thing Celery's loop keeps but one
        app.task(name=_TASK, shared=False)(self._task)
        app.steps["consumer"].add(_Gate)
        app.bell = self
        app.set_default()  # what Celery's own threads take for theirs
        self._app, self._queues = app, list(queues)
        self._celery = self._make()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="doorbell", daemon=True)

    def start(self) -> None:
        state.should_stop = None
        self._thread.start()

    def leave(self) -> None:
        self._left.set()
        state.should_stop = 0
        self._wake()
        self._thread.join(_LEAVE_SECONDS)

    def wait(self, stop: Stop, seconds: float, claimable: Callable[[], bool]) -> None:
        self._idle = True
        self._wake()
        try:
            super().wait(stop, seconds, claimable)
        finally:
            self._idle = False

    def may_take(self) -> bool:
        """Whether the next message is for this worker."""
        return self._idle

    def taken(self, _request: object) -> None:
        """A message has come, and none shall come after it until the drain has looked.

        Whatever is in it, it is a ring, and the drain need not wait until Celery has unpacked it and run its task.
        """
        self._idle = False
        self.ring()
        time.sleep(_GIVE_WAY)

    @staticmethod
    def _task(queue: str) -> None:
        """All that is left to do once its message has come."""

    def _listen(self) -> None:
        while True:
            self._celery.start()
            if self._left.wait(_AGAIN_SECONDS):
                return
            log.error("Celery ended by itself; it is started again")
            self._celery = self._make()

    def _make(self) -> WorkController:
        return WorkController(
            app=self._app,
            queues=self._queues,
            pool="solo",  # its task takes no time; the drain has a thread of its own
            without_mingle=True,
            without_gossip=True,
            without_heartbeat=True,
        )

    def _wake(self) -> None:
        """Have Celery's loop ask again whether it may take a message, or shall leave."""
        self._celery.hub.call_soon(self._nudge)


class _Gate(bootsteps.StartStopStep):
    """Put up at each connection, in place of Celery's limits: messages come while the bell may take them.

    None is kept for a second delivery: one that is lost costs time, one that breaks Celery would break it again.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        bell = consumer.app.bell
        consumer.task_consumer.no_ack = True
        consumer.task_consumer.channel.qos.can_consume = bell.may_take
        consumer.on_task_message.add(bell.taken)
        log.info("listening for rings at %s", consumer.connection.as_uri())
