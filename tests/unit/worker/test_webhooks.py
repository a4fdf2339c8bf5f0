"""A worker tells of ends beside its work: at once, also when it leaves, and without ever waiting for a server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from jobs.client import Client
from jobs.errors import UsageError
from tests.receiver import receiver
from tests.unit.worker.test_drain import Bench
from worker.webhooks import delivering


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path / "home")
    changes = {"webhook_hosts": ("127.0.0.1",), "webhook_secret": SecretStr("s")}
    made.settings = made.settings.model_copy(update=changes)
    made.client.close()
    made.client = Client(made.settings)
    made.drain = made.another("w1")
    return made


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_told_while_the_worker_goes_on(bench: Bench) -> None:
    with receiver() as server, delivering(bench.client.store, bench.settings, bench.stop):
        job = bench.submit("a", webhook=server.url())
        bench.drain.once()
        until(lambda: job.webhooks[0].delivered_at is not None)
        again = bench.submit("b", webhook=server.url())
        again.cancel()
        until(lambda: again.webhooks[0].delivered_at is not None)
    assert len(server.requests) == 2


def test_a_worker_that_leaves_tells_first(bench: Bench) -> None:
    patient = bench.settings.model_copy(update={"poll_seconds": 3600.0})
    with receiver() as server:
        with delivering(bench.client.store, patient, bench.stop):
            job = bench.submit("a", webhook=server.url())
            bench.drain.until_idle()
        assert job.webhooks[0].delivered_at is not None
    assert len(server.requests) == 1


def test_a_worker_that_is_stopped_waits_for_nobody(bench: Bench) -> None:
    patient = bench.settings.model_copy(update={"poll_seconds": 3600.0})
    with receiver() as server:
        with delivering(bench.client.store, patient, bench.stop):
            job = bench.submit("a", webhook=server.url())
            job.cancel()
            bench.stop.set()
        assert server.requests == []
        assert job.webhooks[0].tries == 0


def test_without_hosts_or_secret_the_events_wait(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with receiver() as server:
        job = bench.submit("a", webhook=server.url())
        job.cancel()
        for changes in ({"webhook_hosts": ()}, {"webhook_secret": None}):
            caplog.clear()
            with (
                caplog.at_level(logging.WARNING, "worker.webhooks"),
                delivering(bench.client.store, bench.settings.model_copy(update=changes), bench.stop),
            ):
                pass
        assert "SEQPROC_WEBHOOK_SECRET is not set" in caplog.text
        assert server.requests == []
        assert job.webhooks[0].tries == 0
    with (
        pytest.raises(UsageError, match="SEQPROC_WEBHOOK_HOSTS"),
        delivering(bench.client.store, bench.settings.model_copy(update={"webhook_hosts": ("a/b",)}), bench.stop),
    ):
        pass


def test_a_server_in_trouble_is_no_trouble_of_the_job(bench: Bench) -> None:
    with receiver(500) as server, delivering(bench.client.store, bench.settings, bench.stop):
        job = bench.submit(webhook=server.url())
        bench.drain.until_idle()
        until(lambda: job.webhooks[0].error is not None)
        assert job.refresh().state == "succeeded"
        other = bench.submit("b")
        bench.drain.until_idle()
        assert other.refresh().state == "succeeded"
