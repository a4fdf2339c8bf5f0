"""Work here and now: `seqproc worker --idle-exit` as a child process, for whoever waits with no worker alive.

The child is a process like any other worker, in a session of its own: Ctrl-C in the terminal ends the waiting, not the
work, and the child leaves by itself when nothing is left.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any

from pydantic import SecretStr

from jobs.errors import CannotGoOn, SeqprocError
from jobs.presence import serving
from jobs.records import Job
from jobs.settings import WEB_SECRETS, Settings
from jobs.store import Store

_FAILED_STARTS = 2  # in a row, that said why
_DEATHS_IN_A_ROW = 5  # of children that brought the job no further


def worker_command(*flags: str) -> list[str]:
    """What starts a worker of this very installation."""
    # -P: a folder named `jobs` where the user happens to stand must not be taken for ours
    return [sys.executable, "-P", "-m", "jobs", "worker", *flags]


@dataclass(slots=True)
class ChildWorker:
    """Keeps one embedded worker running while a job needs it. `insist`: also when other workers are alive."""

    store: Store
    queue: str
    environment: dict[str, str]
    insist: bool = False
    _process: subprocess.Popen[bytes] | None = None
    _stderr: IO[bytes] | None = None
    _deaths: int = 0
    _seen: int = -1  # shards done or failed at the last death

    def keep_running(self, job: Job) -> None:
        """Start a worker if none serves the queue. Raises SeqprocError when children cannot get on with the job."""
        if self._process is not None and self._process.poll() is not None:
            self._left(job, self._process.returncode)
        if self._process is None and (self.insist or not serving(self.store, self.queue)):
            self._start()

    def _start(self) -> None:
        self._stderr = TemporaryFile()  # noqa: SIM115  read when the child has left
        self._process = subprocess.Popen(
            worker_command("--idle-exit", "--quiet", "--queue", self.queue),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            start_new_session=True,
        )

    def _left(self, job: Job, code: int) -> None:
        why = self._last_words()
        self._process = None
        if code == CannotGoOn.exit_code:
            if not job.pending_shards or serving(self.store, self.queue):
                return  # another worker is at it, or can be
            raise SeqprocError(
                f"the worker here cannot go on: {why}\nThe job stays as it is: mend this and go on with "
                f"`seqproc wait {job.id}`, or give it up with `seqproc cancel {job.id}`"
            )
        if code == 0:
            return
        further = job.done_shards + job.failed_shards  # a shard that kills its worker ends after its limit
        self._deaths = self._deaths + 1 if further == self._seen else 1
        self._seen = further
        if self._deaths >= (_FAILED_STARTS if code == 1 else _DEATHS_IN_A_ROW):
            manner = f"with exit code {code}" if code > 0 else f"by signal {-code}"
            raise SeqprocError(f"the worker started for job {job.id} ended {manner}: {why or 'it said nothing'}")

    def _last_words(self) -> str:
        assert self._stderr is not None
        with self._stderr as stderr:
            stderr.seek(max(0, stderr.seek(0, 2) - 4000))
            lines = stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("Error: ") if lines else ""


def environment(settings: Settings) -> dict[str, str]:
    """The environment in which a child worker reads exactly these settings, but for WEB_SECRETS."""
    names = [name for name in type(settings).model_fields if name not in WEB_SECRETS]
    given = {f"SEQPROC_{name.upper()}": _text(getattr(settings, name)) for name in names}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEQPROC_")}
    return kept | {name: value for name, value in given.items() if value}


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value.expanduser().resolve()) if hasattr(value, "expanduser") else str(value)
