"""The worker's log on a disk without room: its lines are lost, and nothing else is said about it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from worker.logs import log_to

FULL = Path("/dev/full")


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger whose file is full, and nothing of it afterwards."""
    packages = [logging.getLogger(name) for name in ("jobs", "worker", "sequence_processing", "rlp_datasets")]
    before = [(package.handlers[:], package.level, package.propagate) for package in packages]
    log_to(FULL, "w1", quiet=True)
    yield logging.getLogger("worker.test")
    with suppress(OSError):
        packages[0].handlers[-1].close()
    for package, (handlers, level, propagate) in zip(packages, before, strict=True):
        package.handlers[:], package.propagate = handlers, propagate
        package.setLevel(level)


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
def test_a_line_that_finds_no_room_makes_no_traceback(
    logger: logging.Logger, capfd: pytest.CaptureFixture[str]
) -> None:
    logger.error("a shard was handed back")
    assert capfd.readouterr().err == ""
