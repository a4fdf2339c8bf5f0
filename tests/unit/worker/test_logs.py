"""The worker's log where it cannot be written: on a disk without room its lines are lost and nothing else is said about
it; no worker begins without one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.errors import ResultsError
from jobs.paths import worker_log
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


def test_a_folder_that_cannot_be_written_is_a_sentence_with_its_remedy(tmp_path: Path) -> None:
    logs = tmp_path / "results" / "logs"
    logs.parent.mkdir()
    logs.write_text("a file stands in its place: true for every user, also for root, who may write anywhere")
    with pytest.raises(ResultsError, match=f"{logs} cannot be written: File exists.* SEQPROC_RESULTS_DIR"):
        log_to(worker_log(logs.parent, "w1"), "w1", quiet=True)


def test_a_file_that_cannot_be_written_is_one_too(tmp_path: Path) -> None:
    log = worker_log(tmp_path, "w1")
    log.mkdir(parents=True)
    with pytest.raises(ResultsError, match=f"{log} cannot be written: Is a directory.* SEQPROC_RESULTS_DIR"):
        log_to(log, "w1", quiet=True)
