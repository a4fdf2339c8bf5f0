"""One worker process a GPU, kept running: what `seqproc worker --gpus` is.

Each child sees its own GPU alone and is a worker like any other: claims, leases and the reaper know nothing of fleets.
A child that dies is started again, after a pause that doubles with each death in a row; one that left in order is not.
A stop is handed on to all and waited for; a second one ends them at once. No child outlives the fleet.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import typer

from jobs.errors import CannotGoOn, SeqprocError, UsageError
from jobs.settings import Settings
from jobs.text import clean_line
from worker import device
from worker.command import leave_on_signals
from worker.stop import Stop

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0  # seconds before a dead child is started again; who lived longer begins anew
_LOOK_EVERY = 0.1  # seconds
_GRACE = 10.0  # seconds that a child has to leave at once
_DEATHS_IN_A_ROW = 5  # of a child that is to leave when idle: then it is given up, for somebody waits
_PR_SET_PDEATHSIG = 1


def serve_on(wanted: str, settings: Settings, queues: Sequence[str], *, idle_exit: bool, quiet: bool) -> int:
    """The life of a fleet on the GPUs `wanted` (`all`, or names with commas); returns its exit code.

    Raises StoreError or ResultsError as one worker would, UsageError if there is no such GPU.
    """
    from jobs.store import Store
    from jobs.store_id import check_root

    stop = Stop()
    leave_on_signals(stop)
    names = chosen(wanted, device.gpus())
    store = Store.open(settings)  # what is wrong for every child is said once
    try:
        check_root(store, settings.results)
    finally:
        store.close()
    flags = [word for queue in queues for word in ("--queue", queue)]
    flags += [flag for flag, given in (("--idle-exit", idle_exit), ("--quiet", quiet)) if given]
    command = [sys.executable, "-P", "-m", "jobs", "worker", *flags]  # -P: not the `jobs` of the current directory
    say: Callable[[str], None] = (lambda _: None) if quiet else _say
    return Fleet(names, command, stop, say, idle_exit=idle_exit, metrics_port=settings.metrics_port).run()


def chosen(wanted: str, present: Sequence[str]) -> list[str]:
    """The GPUs that `--gpus` asks for, each once. Raises UsageError if one is not there, or none at all is."""
    if not present:
        hint = f" among {device.VISIBLE}={os.environ[device.VISIBLE]}" if device.VISIBLE in os.environ else ""
        raise UsageError(f"--gpus: torch sees no GPU here{hint}; start `seqproc worker` to work on the CPU")
    if wanted == "all":
        return list(present)
    names = [name.strip() for name in wanted.split(",")]
    if missing := [name for name in names if name not in present]:
        raise UsageError(
            f"--gpus: there is no GPU {missing[0] or repr('')} here; give all, or some of {','.join(present)}"
        )
    return list(dict.fromkeys(names))


@dataclass(slots=True)
class _Child:
    """The worker of one GPU."""

    gpu: str
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0  # monotonic, as are all here
    due_at: float = 0.0  # when to start it
    deaths: int = 0  # in a row
    code: int | None = None  # with which it left for good


@dataclass(slots=True)
class Fleet:
    """Keeps `command` running once a GPU."""

    gpus: Sequence[str]
    command: Sequence[str]
    stop: Stop
    say: Callable[[str], None]
    idle_exit: bool = False
    metrics_port: int = 0

    def run(self) -> int:
        """Until every child has left for good. Returns 0 if each did so in order, or one found no work left; else the
        code of the first that did not."""
        children = [_Child(gpu) for gpu in self.gpus]
        try:
            while not self.stop.is_set() and any(child.code is None for child in children):
                for child in children:
                    self._look(child)
                if self.idle_exit and any(child.code == 0 for child in children):
                    _give_up_the_dead(children)
                self.stop.wait(_LOOK_EVERY)
            for child in children:
                _end(child)
            for child in children:
                if child.process is not None:
                    child.code = child.process.wait()
        finally:
            _end_at_once(children)
        codes = [child.code for child in children if child.code is not None]
        if self.idle_exit and 0 in codes:
            return 0
        # A child that the stop met before it could hear it had begun nothing.
        bad = [code for code in codes if code and not (self.stop.is_set() and code == -signal.SIGTERM)]
        return 0 if not bad else bad[0] if bad[0] > 0 else 128 - bad[0]  # death by a signal as shells tell it

    def _look(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is None and child.code is None and now >= child.due_at:
            self._start(child)
        elif child.process is not None and (code := child.process.poll()) is not None:
            child.process = None
            if code == 0 or (self.idle_exit and code == CannotGoOn.exit_code):
                child.code = code
                return
            if now - child.started_at > _LONGEST_PAUSE:
                child.deaths = 0
            manner = f"with exit code {code}" if code > 0 else f"by signal {-code}"
            self._again(child, code, f"the worker of GPU {child.gpu} ended {manner}")

    def _again(self, child: _Child, code: int, why: str) -> None:
        """Start it later, or give it up."""
        child.deaths += 1
        if self.idle_exit and child.deaths >= _DEATHS_IN_A_ROW:
            child.code = code
            self.say(f"{why}, and did {child.deaths} times in a row; giving it up")
            return
        pause = min(_FIRST_PAUSE * 2 ** min(child.deaths - 1, 30), _LONGEST_PAUSE)
        child.due_at = time.monotonic() + pause
        self.say(f"{why}; starting it again in {pause:.0f} s")

    def _start(self, child: _Child) -> None:
        if child.deaths and not _is_present(child.gpu):  # torch would take the CPU without a word
            self._again(child, 1, f"GPU {child.gpu} is not there any more")
            return
        environment = os.environ | {device.VISIBLE: child.gpu}
        if self.metrics_port:  # one port a worker
            environment["SEQPROC_METRICS_PORT"] = str(self.metrics_port + list(self.gpus).index(child.gpu))
        child.process = subprocess.Popen(
            self.command,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal reaches the fleet alone, which hands it on once
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        child.started_at = time.monotonic()


def _is_present(gpu: str) -> bool:
    with suppress(SeqprocError):
        return gpu in device.gpus()
    return False


def _die_with_parent() -> None:
    """In the child: a stop, should the fleet itself be killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _give_up_the_dead(children: Sequence[_Child]) -> None:
    """One has found that no work is left anywhere: nobody need be started for it again."""
    for child in children:
        if child.process is None and child.code is None:
            child.code = 0


def _end(child: _Child) -> None:
    if child.process is not None and child.process.poll() is None:
        child.process.terminate()


def _end_at_once(children: Sequence[_Child]) -> None:
    """Whatever still runs when the fleet leaves: once more, which a worker takes for `at once`, then without asking."""
    for child in children:
        _end(child)
    deadline = time.monotonic() + _GRACE
    for child in children:
        if child.process is not None:
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


def _say(text: str) -> None:
    typer.echo(f"fleet: {clean_line(text)}", err=True)
