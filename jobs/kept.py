"""A child process that is kept running: one that dies is started again, one that leaves in order is not.

The pause before a start doubles with each death in a row. Ctrl-C in a terminal reaches the parent alone, which hands it
on; no child outlives its parent.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds before a dead child is started again; who lived longer begins anew
GRACE = 10.0  # seconds that a child has to leave at once
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None  # found before any fork


@dataclass(slots=True)
class Kept:
    """One child, and how to keep it. Times are monotonic."""

    called: str  # in sentences: `the worker of GPU 0`
    command: Sequence[str]
    say: Callable[[str], None]
    environment: Mapping[str, str] | None = None  # None: the parent's
    ends_with: Collection[int] = (0,)  # exit codes of one that left for good
    most_deaths: int | None = None  # in a row, after which it is given up
    hindrance: Callable[[], str | None] = lambda: None  # why it cannot be started again now
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    due_at: float = 0.0  # when to start it
    deaths: int = 0  # in a row
    code: int | None = None  # with which it left for good

    def look(self) -> None:
        """Start it when it is due, and see whether it has left. To be called several times a second."""
        now = time.monotonic()
        if self.process is None and self.code is None and now >= self.due_at:
            why = self.hindrance() if self.deaths else None
            self._start() if why is None else self.died(1, why)
        elif self.process is not None and (code := self.process.poll()) is not None:
            self.process = None
            if code in self.ends_with:
                self.code = code
                return
            if now - self.started_at > LONGEST_PAUSE:
                self.deaths = 0
            manner = f"with exit code {code}" if code >= 0 else f"by signal {-code}"
            self.died(code, f"{self.called} ended {manner}")

    def died(self, code: int, why: str) -> None:
        """Start it later, or give it up."""
        self.deaths += 1
        if self.most_deaths is not None and self.deaths >= self.most_deaths:
            self.code = code
            self.say(f"{why}, and did {self.deaths} times in a row; giving it up")
            return
        pause = min(FIRST_PAUSE * 2 ** min(self.deaths - 1, 30), LONGEST_PAUSE)
        self.due_at = time.monotonic() + pause
        self.say(f"{why}; starting it again in {pause:.0f} s")

    def terminate(self) -> None:
        """Ask it to leave, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone
            preexec_fn=_die_with_parent if _prctl is not None else None,
        )
        self.started_at = time.monotonic()


def stop(children: Sequence[Kept]) -> None:
    """Ask all to leave, and wait until they have."""
    for child in children:
        child.terminate()
    for child in children:
        if child.process is not None:
            child.code = child.process.wait()


def stop_at_once(children: Sequence[Kept]) -> None:
    """Whatever still runs when the parent leaves: asked once more, which a worker takes for `at once`, then killed."""
    for child in children:
        child.terminate()
    deadline = time.monotonic() + GRACE
    for child in children:
        if child.process is not None:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


def _die_with_parent() -> None:
    """In the child: a stop, should the parent itself be killed."""
    assert _prctl is not None
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
