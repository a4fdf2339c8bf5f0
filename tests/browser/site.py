"""A home with its server and its workers, each a process as people start it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

from jobs import Client
from jobs.settings import Settings


class Site:
    """The processes over one embedded database, with these variables set; `url` is where the page is."""

    def __init__(self, home: Path, variables: dict[str, str]) -> None:
        self.home = home
        self.client = Client(Settings(home=home))
        self._environment = {**os.environ, "SEQPROC_HOME": str(home), **variables}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[Path] = []

    @classmethod
    @contextmanager
    def started(cls, home: Path, migrated_file: Path, **variables: str) -> Iterator[Self]:
        """A server over a copy of the embedded database `migrated_file`; gone after the block, its workers too."""
        home.mkdir(exist_ok=True)
        shutil.copy(migrated_file, home)
        site = cls(home, variables)
        try:
            site._start_web()
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

    @contextmanager
    def web_away(self) -> Iterator[None]:
        """The server is killed, and started again on its port after the block."""
        self._web.kill()
        self._web.wait()
        self._processes.remove(self._web)
        yield
        self._start_web(urlsplit(self.url).port or 0)

    def until(self, what: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for a condition; fails with the processes' last words when it never comes."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                pytest.fail("\n".join(log.read_text(errors="replace")[-2000:] for log in self._logs))
            time.sleep(0.02)

    def _start_web(self, port: int = 0) -> None:
        self._web, log = self._start("web", "--port", str(port))
        listening = re.compile(r"listening on (http://[^\s\"]+)")
        self.until(lambda: listening.search(log.read_text()) is not None)
        self.url = listening.findall(log.read_text())[0]

    def _start(self, *command: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Starts `seqproc` with these words; returns the process and the file of what it says."""
        log = self.home / f"process-{len(self._logs)}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "jobs", *command],
                env=self._environment,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        self._processes.append(process)
        self._logs.append(log)
        return process, log
