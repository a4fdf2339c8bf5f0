"""A home with its server and its workers, each a process as people start it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

from jobs import Client
from jobs.client import _environment
from jobs.settings import Settings


class Site:
    """The processes over one database; `url` is where the page is."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client = Client(settings)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[Path] = []
        self.url = ""

    @classmethod
    @contextmanager
    def started(cls, settings: Settings, migrated_file: Path) -> Iterator[Self]:
        """A server over a copy of the embedded database `migrated_file`; gone after the block, its workers too."""
        settings.home.mkdir(exist_ok=True)
        shutil.copy(migrated_file, settings.home)
        site = cls(settings)
        try:
            site.url = site._start_web()
            yield site
        finally:
            for process in site._processes:
                process.kill()
                process.wait()
            site.client.close()

    def start_worker(self) -> None:
        """A worker that stays. Returns when it is there to be seen."""
        self._start("worker", "--quiet")
        self.until(lambda: bool(self.client.store.workers()))

    def until(self, what: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for a condition; fails with the processes' last words when it never comes."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                pytest.fail("\n".join(log.read_text(errors="replace")[-2000:] for log in self._logs))
            time.sleep(0.02)

    def _start_web(self) -> str:
        log = self._start("web", "--port", "0")
        listening = re.compile(r"listening on (http://[^\s\"]+)")
        self.until(lambda: listening.search(log.read_text()) is not None)
        found = listening.search(log.read_text())
        assert found is not None
        return found[1]

    def _start(self, *command: str) -> Path:
        """Starts `seqproc` with these words; returns the file of what it says."""
        log = self.settings.home / f"process-{len(self._logs)}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "jobs", *command],
                env=_environment(self.settings),
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        self._processes.append(process)
        self._logs.append(log)
        return log
