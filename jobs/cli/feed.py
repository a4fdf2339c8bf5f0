"""`submit - --stream`: the prompts of a pipe become shards as they come, for as long as it goes on.

All of a file is checked before anything is stored; a pipe that goes on for hours cannot be. Whether one will nobody can
tell from the pipe, so it is asked for: without `--stream` standard input is read to its end and checked like a file.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, BinaryIO

from jobs.cli.follow import INTERRUPTED, follow
from jobs.cli.output import Output, error
from jobs.errors import SeqprocError
from jobs.text import plural

if TYPE_CHECKING:
    from jobs.feed import Feed
    from jobs.spec import JobSpec
    from jobs.tracking.names import Track


def feed(spec: JobSpec, out: Output, *, detach: bool, local: bool, track: Track | None) -> int:
    """Feed a job from standard input and follow it; detached, only to the end of the pipe. Returns the exit code."""
    from jobs.client import Client

    with Client() as client:
        fed = client.feed(spec)
        if not out.as_json:
            out.data(fed.job.id)
        out.hint("Prompts are taken until standard input ends; Ctrl-C ends them now")
        reader = _Reader(fed)
        if detach:
            code = reader.wait(out)
        else:
            code = follow(fed.job, out, local=local, print_id=False, track=track)
        reader.finish(out, interrupted=code == INTERRUPTED)
        if detach and out.as_json:
            out.json(fed.job.refresh())
    return code if code == INTERRUPTED else reader.failed() or code or int(fed.job.record.truncated is not None)


class _Reader(threading.Thread):
    """Reads the pipe to its end. For as long as it comes to nothing it holds nobody up."""

    def __init__(self, fed: Feed) -> None:
        super().__init__(name="standard input", daemon=True)
        self._fed = fed
        self._failure: SeqprocError | None = None
        self._stream = _own_stdin()
        self.start()

    def run(self) -> None:
        try:
            with self._fed:  # so that nobody waits for more, whatever goes wrong
                self._fed.add_lines(self._stream)
        except SeqprocError as failure:
            self._failure = failure

    def wait(self, out: Output) -> int:
        """To the end of the pipe."""
        try:
            while self.is_alive():
                self.join(0.2)
        except KeyboardInterrupt:
            return INTERRUPTED
        if self._failure is None:
            out.hint(f"Submitted: {plural(self._fed.prompts, 'prompt')}. Watch it: seqproc watch {self._fed.job.id}")
        return 0

    def finish(self, out: Output, *, interrupted: bool) -> None:
        """Nobody follows any more: end what goes on."""
        if self._fed.ended:
            self.join()
        else:
            self._fed.break_off("Ctrl-C" if interrupted else "the job has ended")
        if interrupted and self._fed.job.record.truncated:
            out.hint(f"Sealed: {self._fed.job.record.truncated}")

    def failed(self) -> int:
        """Say what went wrong, if something did; the exit code."""
        if self._failure is None:
            return 0
        error(str(self._failure))
        return self._failure.exit_code


def _own_stdin() -> BinaryIO:
    """Standard input under a name of its own: the interpreter cannot leave while a thread waits in `sys.stdin`."""
    try:
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    except OSError:  # no file
        return sys.stdin.buffer
