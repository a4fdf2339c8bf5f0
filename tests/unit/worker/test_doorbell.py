"""Celery as it is used here: JSON only, nothing from the environment, no message that makes a worker deaf."""

from __future__ import annotations

import base64
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.redis_server import RedisServer
from worker.bell import RungBell
from worker.doorbell import _Rings, listening, ringer
from worker.stop import Stop

FOR_EVER = 60.0  # seconds: a ring that takes so long was not heard


@pytest.fixture
def store_id() -> str:
    return uuid4().hex


@pytest.fixture
def bell(redis_server: RedisServer, store_id: str) -> Iterator[RungBell]:
    with listening(redis_server.url, store_id, ["a", "b"]) as made:
        yield made


def heard(bell: RungBell) -> bool:
    """Whether a ring ends a wait."""
    woken: list[bool] = []
    ring, stop = bell.ring, Stop()
    bell.ring = lambda: (woken.append(True), ring())  # type: ignore[method-assign,assignment,return-value]
    bell.wait(stop, FOR_EVER, lambda: True)
    bell.ring = ring  # type: ignore[method-assign]
    return bool(woken)


def test_a_ring_reaches_the_bell_of_its_queue_and_database(
    bell: RungBell, redis_server: RedisServer, store_id: str
) -> None:
    for queue in ("a", "b", "a"):
        ringer(redis_server.url, store_id)(queue, 1)
        assert heard(bell)
    ringer(redis_server.url, uuid4().hex)("a", 1)
    ringer(redis_server.url, store_id)("c", 1)
    began = len(redis_server.client().keys(f"seqproc:{store_id}:c"))
    assert began == 1, "nobody serves it"
    bell.wait(Stop(), 0.5, lambda: True)
    assert redis_server.client().llen(f"seqproc:{store_id}:c") == 1


class _Evil:
    """What runs code where somebody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickled_message_is_refused_and_the_worker_hears_on(
    bell: RungBell, redis_server: RedisServer, store_id: str, tmp_path: Path
) -> None:
    """As somebody with access to Redis would forge it, from a true message."""
    trap, key = tmp_path / "trap", f"seqproc:{store_id}:c"
    ringer(redis_server.url, store_id)("c", 1)
    with redis_server.client() as client:
        message = json.loads(client.rpop(key))  # type: ignore[arg-type]
        evil = pickle.dumps(((_Evil(trap),), {}, {}))
        message |= {"body": base64.b64encode(evil).decode(), "content-type": "application/x-python-serialize"}
        message["content-encoding"] = "binary"
        message["properties"]["delivery_info"]["routing_key"] = "a"
        for forged in (json.dumps(message), json.dumps(message | {"headers": {}})):
            client.lpush(f"seqproc:{store_id}:a", forged)
            bell.wait(Stop(), 0.5, lambda: True)
        assert client.llen(f"seqproc:{store_id}:a") == 0, "both were taken"
    assert not trap.exists()
    ringer(redis_server.url, store_id)("a", 1)
    assert heard(bell)
    pickle.loads(evil)
    assert trap.exists(), "the trap would have worked"


def test_a_message_of_the_wrong_shape_does_not_make_the_worker_deaf(
    bell: RungBell, redis_server: RedisServer, store_id: str
) -> None:
    ringer(redis_server.url, store_id)("c", 1)
    with redis_server.client() as client:
        message = json.loads(client.rpop(f"seqproc:{store_id}:c"))  # type: ignore[arg-type]
        message["body"] = base64.b64encode(b"[1]").decode()
        client.lpush(f"seqproc:{store_id}:a", json.dumps(message))
    bell.wait(Stop(), 0.5, lambda: True)
    for _ in range(2):
        ringer(redis_server.url, store_id)("a", 1)
        assert heard(bell)


def test_the_environment_of_other_programs_is_left_alone(
    redis_server: RedisServer, store_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "no_such_module")
    with listening(redis_server.url, store_id, ["a"]) as bell:
        ringer(redis_server.url, store_id)("a", 1)
        assert heard(bell)


def test_what_celery_is_told() -> None:
    conf = _Rings("redis://127.0.0.1:1/0", "x").conf
    assert set(conf.accept_content) == set(conf.result_accept_content) == {"json"}
    assert {conf.task_serializer, conf.event_serializer} == {"json"}
    assert not conf.task_acks_late
    assert not conf.worker_enable_remote_control
    assert conf.broker_connection_max_retries is None
    assert conf.broker_transport_options["socket_timeout"] == 3
    assert type(_Rings("redis://127.0.0.1:1/0", "x").backend).__name__ == "DisabledBackend"
