"""A tracker at arm's length: its library runs in a child process, which a thread here speaks to.

Whoever offers figures never waits. If the tracker is slower than they come, the newest replaces the one before; if it
fails, or does not answer within LIMIT, its process is killed, that is told once, and all that follows goes nowhere.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from threading import Condition, Thread
from typing import IO, Any

from jobs.redact import without_credentials
from jobs.text import clean_line
from jobs.tracking.tracker import Figures, Run

LIMIT = 60.0  # seconds that a tracker may take for an answer, and in all for its last ones
_LEAVING = 2.0  # seconds that its process may take to end when all was answered
_ROOT = "SEQPROC_TENSORBOARD_DIR"  # the only setting that is its business: others hold secrets

Tell = Callable[[int, str], None]
"""Called with a level of `logging` and a sentence, from any thread."""


class _Failed(Exception):
    """The tracker's process said that it failed, or said nothing more."""


class Sender:
    """One run of one tracker, from its start to `close`."""

    def __init__(self, name: str, run: Run, tell: Tell) -> None:
        self._name, self._run, self._tell = name, run, tell
        self._turn = Condition()
        self._newest: dict[str, Any] | None = None
        self._last: dict[str, Any] | None = None
        self._asked: float | None = None  # when what is not answered yet was asked
        self._late: float | None = None  # the limit that it did not keep
        self._process = _start(name)
        self._thread = Thread(target=self._send, name=f"tracking-{name}", daemon=True)
        self._thread.start()

    def offer(self, step: int, figures: Figures) -> None:
        """Send these figures, unless newer ones come first."""
        with self._turn:
            self._newest = {"log": [step, figures]}
            self._turn.notify()

    def look(self) -> None:
        """Give a tracker up that has not answered for too long."""
        asked = self._asked
        if asked is not None and time.monotonic() - asked > LIMIT:
            self._give_up(LIMIT)

    def close(self, state: str, limit: float) -> None:
        """Send what was offered last, and that the job is in `state`; return within about `limit` seconds."""
        with self._turn:
            self._last = {"close": state}
            self._turn.notify()
        try:
            self._thread.join(limit)
            if self._thread.is_alive():
                self._give_up(limit)
                self._thread.join(1.0)
        finally:
            self._kill()

    def _send(self) -> None:
        try:
            where = self._ask({"open": asdict(self._run)}).get("where", "")
            self._tell(logging.INFO, f"Tracked by {self._name}: {_shown(where)}")
            while "close" not in (message := self._next()):
                self._ask(message)
            self._ask(message)
            with suppress(OSError, subprocess.TimeoutExpired):
                self._pipes[0].close()  # its input ends, and so does it
                self._process.wait(_LEAVING)
        except _Failed as failure:
            why = f"it did not answer within {self._late:g} s" if self._late else _shown(str(failure)).rstrip(".")
            self._tell(logging.WARNING, f"{self._name} does not track this job any more: {why}. The job is unharmed")

    def _next(self) -> dict[str, Any]:
        """The next message, waited for: the newest figures, then the last word."""
        with self._turn:
            self._turn.wait_for(lambda: self._newest or self._last)
            message = self._newest or self._last
            self._newest = None
        assert message is not None
        return message

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to a message. Raises _Failed if it tells of a failure, or none comes."""
        asked, answers = self._pipes
        self._asked = time.monotonic()
        try:
            asked.write(json.dumps(message) + "\n")
            asked.flush()
        except OSError:
            pass  # it has left, and may have said why
        line = answers.readline()
        self._asked = None
        if not line.endswith("\n"):
            raise _Failed(f"its process ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise _Failed(answer["failed"])
        return answer

    @property
    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _give_up(self, limit: float) -> None:
        self._late = limit
        self._kill()

    def _kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def _start(name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        # -P: a folder named `jobs` where the user happens to stand must not be taken for ours
        [sys.executable, "-P", "-m", "jobs.tracking", name],
        env={key: value for key, value in os.environ.items() if not key.startswith("SEQPROC_") or key == _ROOT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C is for the waiting, which then closes the run
    )


def _shown(text: str) -> str:
    return clean_line(without_credentials(text))
