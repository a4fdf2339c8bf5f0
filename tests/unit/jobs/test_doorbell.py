"""A ring that fails is no failure: it says why in a sentence, soon, and without the password."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from importlib.metadata import EntryPoint

import pytest

from jobs import doorbell
from jobs.doorbell import Doorbell, load_ringer
from jobs.errors import UsageError
from jobs.processes import this_process
from jobs.settings import Settings
from tests.house import House

SECRET = "pa%40ss%2Fword"


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def ring(house: House, url: str, *, patience: float = 3.0) -> str | None:
    house.store.register_worker("w", this_process(), queues=["default"])
    settings = Settings(home=house.settings.home, redis_url=url)
    return Doorbell(house.store, settings, patience=patience).ring("default", 4)


def test_without_redis_nothing_is_loaded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorbell, "load_ringer", None)
    assert ring(house, "") is None


def test_redis_away(house: House) -> None:
    why = ring(house, f"redis://:{SECRET}@127.0.0.1:1/0", patience=60)
    assert why is not None
    assert why.startswith("Redis took no ring: ")
    assert "refused" in why


def test_redis_hangs(house: House, silent_port: int) -> None:
    assert ring(house, f"redis://127.0.0.1:{silent_port}/0", patience=0.2) == "Redis has not answered for 0.2 s"


def test_one_ring_at_a_time(house: House, silent_port: int) -> None:
    house.store.register_worker("w", this_process(), queues=["default"])
    settings = Settings(home=house.settings.home, redis_url=f"redis://127.0.0.1:{silent_port}/0")
    bell = Doorbell(house.store, settings, patience=0.2)
    bell.ring("default", 1)
    assert bell.ring("default", 1) == "Redis still owes an answer to the last ring"


def test_the_password_is_in_no_sentence(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def talkative(queue: str, times: int) -> None:
        raise RuntimeError(f"cannot reach redis://:{SECRET}@127.0.0.1:1/0 as pa@ss/word")

    monkeypatch.setattr(doorbell, "load_ringer", lambda _url, _store_id: talkative)
    why = ring(house, f"redis://:{SECRET}@127.0.0.1:1/0")
    assert why == "Redis took no ring: cannot reach redis://:***@127.0.0.1:1/0 as ***"


def test_a_missing_package_is_a_sentence_with_its_remedy(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint(name="celery", value="no_celery_here:ringer", group="seqproc.doorbell")
    monkeypatch.setattr(doorbell, "entry_points", lambda group: [entry])
    sentence = "needs the package no_celery_here; install sequence-processor[redis]"
    with pytest.raises(UsageError, match=sentence.replace("[", r"\[")):
        load_ringer("redis://127.0.0.1:1/0", "x")
    assert (ring(house, "redis://127.0.0.1:1/0") or "").endswith(sentence)


@pytest.mark.parametrize(
    "url",
    [
        *("redis://:pa/ss@host/0", "redis://user:1?pa/ss@host", "redis://user:1#pa/ss@host", "redis://pa%2Fss@host"),
        *("amqp://host", "redis://", "redis://host/db", "redis://host:port", "host:6379"),
    ],
)
def test_a_url_that_is_none_is_said_without_what_it_holds(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEQPROC_REDIS_URL", url)
    with pytest.raises(UsageError) as raised:
        Settings.load()
    assert "SEQPROC_REDIS_URL: give a URL like redis://:password@host:6379/0" in str(raised.value)
    assert not any(part in str(raised.value) for part in ("pa/ss", "pa%2Fss"))


@pytest.mark.parametrize("url", ["redis://host", "rediss://:pa%2Fss@host:6379/2", "redis://user:pw@[::1]:7/"])
def test_a_url_that_is_one_is_taken(url: str) -> None:
    assert Settings(redis_url=url).redis_url == url
