"""What can go wrong, as sentences for the person who must act. Tracebacks are for bugs, never for these.

One base class; `exit_code` is what the command line ends with: 2 for what was asked wrongly, 1 for what failed.
"""

from __future__ import annotations


class SeqprocError(Exception):
    """A failure whose message names the thing, the place and the remedy."""

    exit_code = 1


class UsageError(SeqprocError):
    """What was asked for cannot be done as asked: a field, a flag, a file's content, a job's name."""

    exit_code = 2


class SpecError(UsageError):
    """A job's description is wrong. `problems` has one `place: message` line for each thing to mend."""

    def __init__(self, problems: list[str], total: int | None = None) -> None:
        self.problems = problems
        self.total = len(problems) if total is None else total
        shown = "\n".join(problems)
        more = self.total - len(problems)
        super().__init__(f"{shown}\n… and {more:,} more problems" if more > 0 else shown)


class JobNotFound(UsageError):
    """No job has this id, or this prefix of one; or several do."""


class IdempotencyConflict(UsageError):
    """The same idempotency key was used before for a different job."""


class WrongState(SeqprocError):
    """A job's state does not allow what was asked of it."""


class CannotGoOn(SeqprocError):
    """What is left in its queues cannot be done by this worker; the message says why."""

    exit_code = 3


class ResultsError(SeqprocError):
    """The results folder cannot be written or read, or is not the one that the database knows."""


class StoreError(SeqprocError):
    """The database cannot be reached, or its schema is not the one that this version speaks."""


class NotFinished(SeqprocError):
    """Results of an unfinished job were asked for without asking for what there is."""


class Incomplete(SeqprocError):
    """A job has ended, and some of its shards never will be done. `cursor`: behind which they come after a retry."""

    def __init__(self, message: str, cursor: str | None = None) -> None:
        self.cursor = cursor
        super().__init__(message)


class Unreachable(StoreError):
    """The server that a client speaks to over HTTP does not answer, or is none of ours."""
