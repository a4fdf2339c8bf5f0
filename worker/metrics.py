"""What this process did, for Prometheus: counters that begin with the process, served on loopback where asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import REGISTRY, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from sequence_processing import splits

log = logging.getLogger(__name__)

TOKENS = Counter("seqproc_worker_tokens", "Tokens generated or scored, those of attempts that were lost included.")
SEQUENCES = Counter("seqproc_worker_sequences", "Sequences finished, those of attempts that were lost included.")
SHARDS = Counter("seqproc_worker_shards", "Attempts at shards, by how they ended.", ["outcome"])
LEASE_EXPIRIES = Counter(
    "seqproc_worker_lease_expiries", "Shards that this worker took back from workers that died or went silent."
)
SHARD_SECONDS = Histogram(
    "seqproc_worker_shard_seconds",
    "Seconds from the claim of a shard to the end of the attempt.",
    buckets=(1, 2, 5, 10, 20, 60, 120, 300, 600, 1200, 3600),
)


class _Splits(Collector):
    """The core's own count, which it keeps without knowing of Prometheus."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        text = "Batches that ran out of memory and went on smaller."
        yield CounterMetricFamily("seqproc_worker_oom_splits", text, value=splits.count)


REGISTRY.register(_Splits())


@contextmanager
def timed() -> Iterator[None]:
    """An attempt at a shard."""
    began = time.monotonic()
    try:
        yield
    finally:
        SHARD_SECONDS.observe(time.monotonic() - began)


def serve_metrics(port: int) -> None:
    """Serve /metrics at 127.0.0.1. A port that is taken, say by the worker of the next GPU, stops no work."""
    try:
        start_http_server(port, "127.0.0.1")
    except OSError as error:
        log.warning("no metrics at port %d of SEQPROC_METRICS_PORT: %s", port, error.strerror or error)
    else:
        log.info("metrics at http://127.0.0.1:%d/metrics", port)
