"""What a worker counts of itself, and how it is served."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client import REGISTRY

from sequence_processing import splits
from tests.unit.worker.test_drain import Bench
from worker.faults import WorkerFault
from worker.metrics import serve_metrics

Delta = Callable[..., float]


@pytest.fixture
def delta() -> Delta:
    """How much a sample has risen since the test began."""

    def value(name: str, labels: dict[str, str]) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    outcomes = [{"outcome": outcome} for outcome in ("done", "failed", "handed back", "lost")]
    samples = [("seqproc_worker_shards_total", labels) for labels in outcomes]
    samples += [(f"seqproc_worker_{n}_total", {}) for n in ("tokens", "sequences", "lease_expiries", "oom_splits")]
    samples += [("seqproc_worker_shard_seconds_count", {})]
    before = {(name, *labels.values()): value(name, labels) for name, labels in samples}

    def risen(name: str, **labels: str) -> float:
        return value(name, labels) - before[(name, *labels.values())]

    return risen


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "home")
    yield made
    made.client.close()


def test_a_job_that_is_done(bench: Bench, delta: Delta) -> None:
    bench.submit()
    bench.drain.until_idle()
    assert delta("seqproc_worker_shards_total", outcome="done") == 3
    assert delta("seqproc_worker_tokens_total") == 24
    assert delta("seqproc_worker_sequences_total") == 12
    assert delta("seqproc_worker_shard_seconds_count") == 3


def test_shards_that_are_not_done(bench: Bench, delta: Delta) -> None:
    def broken(*_: object) -> None:
        raise ValueError("poison")

    bench.engine.fault = broken
    job = bench.submit("a")
    bench.drain.until_idle()
    assert job.refresh().state == "failed"
    assert delta("seqproc_worker_shards_total", outcome="failed") == bench.settings.max_failures
    bench.engine.fault = None
    bench.engine.cannot_load = WorkerFault("not here")
    bench.submit("b")
    bench.drain.once()
    assert delta("seqproc_worker_shards_total", outcome="handed back") == 1
    assert delta("seqproc_worker_shards_total", outcome="done") == 0


def test_a_shard_that_was_taken_away(bench: Bench, delta: Delta) -> None:
    store = bench.client.store

    def robbed(*_: object) -> None:
        bench.engine.fault = None
        reaped = False
        while not reaped:  # a heartbeat may come between the look and the reaping
            [(shard, _worker)] = store.running_beats()
            reaped = store.reap(shard.job_id, 0, shard.attempt, beat=shard.beat, reason="silent", limit=9)

    bench.engine.fault = robbed
    bench.submit("a")
    bench.drain.until_idle()
    assert delta("seqproc_worker_shards_total", outcome="lost") == 1
    assert delta("seqproc_worker_shards_total", outcome="done") == 1


def test_leases_that_expired(bench: Bench, delta: Delta) -> None:
    bench.submit("a")
    assert bench.client.store.claim("dead", queues=["default"], model=None, age_limit=600) is not None
    times = iter(range(0, 10_000, 10))
    bench.drain.reaper._clock = lambda: float(next(times))
    bench.drain.reaper._last_look = 0.0
    bench.drain.until_idle()
    assert delta("seqproc_worker_lease_expiries_total") == 1
    assert delta("seqproc_worker_shards_total", outcome="done") == 1


def test_batches_that_ran_out_of_memory(delta: Delta) -> None:
    splits.count += 2
    assert delta("seqproc_worker_oom_splits_total") == 2


def test_served_on_loopback(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve_metrics(port)
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert "seqproc_worker_tokens_total" in text
    assert 'seqproc_worker_shard_seconds_bucket{le="1.0"}' in text
    with caplog.at_level(logging.WARNING, "worker.metrics"):
        serve_metrics(port)
    [line] = caplog.messages
    assert line == f"no metrics at port {port} of SEQPROC_METRICS_PORT: Address already in use"
