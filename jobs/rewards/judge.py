"""Running a reward over the rows of a shard's file, in processes that are killed when they hang and started anew.

The time limit is kept from outside, so it holds also where the process is deaf to signals: in a regular expression, in
a C extension. The row that it was at counts as not judged, and the next process goes on behind it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from jobs.errors import SeqprocError, UsageError
from jobs.rewards.registry import Function, Reward, as_reward, check_name, unknown

_START = 120.0  # seconds that a process has to import a reward
_LOOK_EVERY = 0.1  # seconds
_FEWEST = 32  # rows for which another process is worth its start
MOST_PROCESSES = min(os.cpu_count() or 1, 4)


class CannotJudge(SeqprocError):
    """The reward itself cannot be run: it is not installed here, cannot be imported, or reads what is not there."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The values of some rows in order, None for each that could not be judged; and why not, with counts."""

    values: list[float | None] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def unjudged(self) -> int:
        """How many have no value."""
        return sum(value is None for value in self.values)


class Judges:
    """The processes of one reward. They start when they are needed, and end with the `with` block."""

    def __init__(self, reward: str | Function | Reward, name: str | None = None, processes: int = MOST_PROCESSES):
        """`reward`: the name of an installed one, or a function. Raises UsageError if that is neither."""
        if isinstance(reward, str):
            why = unknown(reward)
            if why is not None:
                raise UsageError(why)
            self.name, pickled = check_name(name or reward), None
        else:
            own = as_reward(reward, name)
            self.name, pickled = own.name, _pickled(own)
        self._judges = [
            _Judge(self.name, reward if isinstance(reward, str) else None, pickled) for _ in range(processes)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for judge in self._judges:
            judge.end()

    def judge(self, file: Path, rows: int, look: Callable[[], object] = lambda: None) -> Judged:
        """The values of all rows of a shard's file, of which there are `rows`.

        Args:
            look: called several times a second; what it raises ends the judging and passes.

        Raises:
            CannotJudge: the reward cannot be run at all.
        """
        count = max(1, min(len(self._judges), rows // _FEWEST))
        bounds = [rows * i // count for i in range(count + 1)]
        with ThreadPoolExecutor(count) as threads:
            parts = [
                threads.submit(judge.judge, file, start, stop)
                for judge, start, stop in zip(self._judges, bounds, bounds[1:], strict=False)
            ]
            try:
                while wait(parts, _LOOK_EVERY).not_done:
                    look()
            except BaseException:
                for judge in self._judges:
                    judge.end()
                raise
        made = [part.result() for part in parts]
        return Judged([v for part in made for v in part.values], sum((part.reasons for part in made), Counter()))


class _Judge:
    """One process at a time, over which one thread at a time asks; `end` may be called by any."""

    def __init__(self, called: str, name: str | None, pickled: bytes | None) -> None:
        self._called, self._name, self._pickled = called, name, pickled
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Connection | None = None
        self._seconds = _START
        self._ended = False

    def judge(self, file: Path, start: int, stop: int) -> Judged:
        judged = Judged()
        while (at := start + len(judged.values)) < stop:
            self._start()
            self._send(json.dumps({"file": str(file), "start": at, "stop": stop}).encode())
            if (lost := self._receive(_START).get("lost")) is not None:
                raise CannotJudge(f"reward {self._called}: its process {lost} before it judged anything of {file}")
            while start + len(judged.values) < stop:
                answer = self._receive(self._seconds)
                judged.values.append(answer.get("value"))
                if judged.values[-1] is None:
                    judged.reasons[answer.get("why") or f"its process {answer['lost']}"] += 1
                if "lost" in answer:
                    self._kill()
                    break
        return judged

    def end(self) -> None:
        """Kill the process; whoever asks it now is told so, and nobody starts another."""
        with self._lock:
            self._ended = True
            self._kill()

    def _start(self) -> None:
        with self._lock:
            if self._ended:
                raise CannotJudge(f"reward {self._called}: judging was broken off")
            if self._process is not None:
                return
            self._end, theirs = Pipe()
            command = [sys.executable, "-P", "-m", "jobs.rewards.child", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us, and what it starts itself ends with it
            )
            theirs.close()
        self._send(json.dumps({"name": self._name, "sys_path": _sys_path()}).encode())
        if self._pickled is not None:
            self._send(self._pickled)
        answer = self._receive(_START)
        if "lost" in answer:
            self._kill()
            raise CannotJudge(f"reward {self._called} cannot be run: its process {answer['lost']} while it started")
        self._seconds = answer["seconds"]

    def _send(self, message: bytes) -> None:
        with suppress(OSError):  # it has died: the next answer says so
            assert self._end is not None
            self._end.send_bytes(message)

    def _receive(self, seconds: float) -> dict[str, Any]:
        """The next answer, or {"lost": how the process ended}. Raises CannotJudge if it says that it cannot go on."""
        end, process = self._end, self._process
        assert end is not None and process is not None
        try:
            if not end.poll(seconds):
                return {"lost": f"took longer than {seconds:g} s for it"}
            answer: dict[str, Any] = json.loads(end.recv_bytes())
        except (EOFError, OSError):
            return {"lost": _manner(process)}
        if "problem" in answer:
            raise CannotJudge(f"reward {self._called} cannot be run: {answer['problem']}")
        return answer

    def _kill(self) -> None:
        if self._process is not None and self._end is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._end.close()
        self._process = None


def _manner(process: subprocess.Popen[bytes]) -> str:
    """How a process ended whose end of the line is closed."""
    with suppress(subprocess.TimeoutExpired):
        code = process.wait(1)
        return f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}"
    return "closed its line"


def _pickled(reward: Reward) -> bytes:
    """By value where it must be: a function of a notebook or of the script that runs is in no module to import."""
    import dill

    try:
        pickled: bytes = dill.dumps(reward, recurse=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(
            f"reward {reward.name} cannot be sent to a process of its own ({reason}): let the function open or load "
            "what it needs by itself"
        ) from None
    return pickled


def _sys_path() -> list[str]:
    return [path or str(Path.cwd()) for path in sys.path]
