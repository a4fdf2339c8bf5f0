"""One worker process a GPU, kept running: what `seqproc worker --gpus` is.

Each child sees its own GPU alone and is a worker like any other: claims, leases and the reaper know nothing of fleets.
A child that dies is started again, after a pause that doubles with each death in a row; one that left in order is not.
A stop is handed on to all and waited for; a second one ends them at once. No child outlives the fleet.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

import typer

from jobs import kept
from jobs.child import worker_command
from jobs.errors import CannotGoOn, SeqprocError, UsageError
from jobs.kept import Kept
from jobs.settings import Settings
from jobs.text import clean_line
from worker import device
from worker.command import leave_on_signals
from worker.stop import Stop

_LOOK_EVERY = 0.1  # seconds
_DEATHS_IN_A_ROW = 5  # of a child that is to leave when idle: then it is given up, for somebody waits


def serve_on(wanted: str, settings: Settings, queues: Sequence[str], *, idle_exit: bool, quiet: bool) -> int:
    """The life of a fleet on the GPUs `wanted` (`all`, or names with commas); returns its exit code.

    Raises StoreError or ResultsError as one worker would, UsageError if there is no such GPU.
    """
    from jobs.store import Store
    from jobs.store_id import check_root

    stop = Stop()
    leave_on_signals(stop)
    names = chosen(wanted, device.gpus())
    with closing(Store.open(settings)) as store:  # what is wrong for every child is said once
        check_root(store, settings.results)
    flags = [word for queue in queues for word in ("--queue", queue)]
    flags += [flag for flag, given in (("--idle-exit", idle_exit), ("--quiet", quiet)) if given]
    say: Callable[[str], None] = (lambda _: None) if quiet else _say
    return Fleet(
        names, worker_command(*flags), stop, say, idle_exit=idle_exit, metrics_port=settings.metrics_port
    ).run()


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
        children = [self._child(gpu) for gpu in self.gpus]
        try:
            while not self.stop.is_set() and any(child.code is None for child in children):
                for child in children:
                    child.look()
                if self.idle_exit and any(child.code == 0 for child in children):
                    _give_up_the_dead(children)
                self.stop.wait(_LOOK_EVERY)
            kept.stop(children)
        finally:
            kept.stop_at_once(children)
        codes = [child.code for child in children if child.code is not None]
        if self.idle_exit and 0 in codes:
            return 0
        # A child that the stop met before it could hear it had begun nothing.
        bad = [code for code in codes if code and not (self.stop.is_set() and code == -signal.SIGTERM)]
        return 0 if not bad else bad[0] if bad[0] > 0 else 128 - bad[0]  # death by a signal as shells tell it

    def _child(self, gpu: str) -> Kept:
        environment = os.environ | {device.VISIBLE: gpu}
        if self.metrics_port:  # one port a worker
            environment["SEQPROC_METRICS_PORT"] = str(self.metrics_port + list(self.gpus).index(gpu))
        return Kept(
            called=f"the worker of GPU {gpu}",
            command=self.command,
            say=self.say,
            environment=environment,
            ends_with=(0, CannotGoOn.exit_code) if self.idle_exit else (0,),
            most_deaths=_DEATHS_IN_A_ROW if self.idle_exit else None,
            # torch would take the CPU without a word
            hindrance=lambda: None if _is_present(gpu) else f"GPU {gpu} is not there any more",
        )


def _is_present(gpu: str) -> bool:
    with suppress(SeqprocError):
        return gpu in device.gpus()
    return False


def _give_up_the_dead(children: Sequence[Kept]) -> None:
    """One has found that no work is left anywhere: nobody need be started for it again."""
    for child in children:
        if child.process is None and child.code is None:
            child.code = 0


def _say(text: str) -> None:
    typer.echo(f"fleet: {clean_line(text)}", err=True)
