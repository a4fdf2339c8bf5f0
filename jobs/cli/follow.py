"""`watch` and `wait`, and how a job is followed: a live bar on a terminal, an occasional line elsewhere (on stderr).

Ctrl-C ends the following, never the job.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from jobs.cli.output import JobArgument, JsonFlag, Output, QuietFlag, error, stderr_console, warning
from jobs.states import JobState
from jobs.text import clean, plural, seconds
from jobs.tracking.names import Track

if TYPE_CHECKING:
    from jobs.client import JobHandle
    from jobs.progress import Progress

TIMED_OUT = 124
INTERRUPTED = 130
_LINE_EVERY = 5.0  # seconds between plain lines of progress

Show = Callable[["Progress"], None]
Say = Callable[[str], None]


class _Display(NamedTuple):
    """How a job that is followed is shown."""

    show: Show  # each progress
    say: Say  # a line above it


LocalFlag = Annotated[bool, typer.Option("--local", help="Run a worker here even if others are alive.")]
DryRunFlag = Annotated[bool, typer.Option("--dry-run", help="Check everything, store nothing, show the spec.")]
TrackFlag = Annotated[
    Track | None, typer.Option(help="Send progress and, at the end, the report's figures there, under your login.")
]


def watch(job: JobArgument, track: TrackFlag = None, as_json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """Show a job's progress until it ends."""
    from jobs.client import Client
    from jobs.presence import serving

    out = Output(as_json=as_json, quiet=quiet)
    with Client() as client:
        handle = client.get(job)
        if not handle.record.state.ended and not serving(client.store, handle.record.queue):
            out.hint(f"No worker is alive for queue {handle.record.queue}; start one with: seqproc worker")
        raise typer.Exit(follow(handle, out, start_worker=False, track=track))


def wait(
    job: JobArgument,
    timeout: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Give up after so long.")] = None,
    track: TrackFlag = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Wait for a job to end; start a worker if none lives.

    Exit code 0: succeeded, 1: failed or cancelled, 124: timed out. The job goes on whatever becomes of the waiting.
    """
    from jobs.client import Client

    out = Output(as_json=as_json, quiet=quiet)
    with Client() as client:
        raise typer.Exit(follow(client.get(job), out, timeout=timeout, track=track))


def follow(
    handle: JobHandle,
    out: Output,
    *,
    timeout: float | None = None,
    start_worker: bool = True,
    local: bool = False,
    print_id: bool = True,
    track: Track | None = None,
) -> int:
    """Follow a job to its end, then print it as `out` says. Returns the exit code.

    `print_id`: whether `-q` prints the id, False where that was done already.
    """
    code = 0
    began = time.monotonic()
    try:
        with _display(handle, out) as display, _tracked(handle, track, display, out) as show:
            progress = handle.wait(timeout=timeout, on_progress=show, start_worker=start_worker, local=local)
            took = time.monotonic() - began
        code = 0 if progress.state is JobState.SUCCEEDED else 1
        _summary(handle, progress, took, out)
    except TimeoutError as late:
        code = TIMED_OUT
        error(str(late))
    except KeyboardInterrupt:
        code = INTERRUPTED
        out.hint(f"\nThe job goes on. Watch it: seqproc watch {handle.id}   Stop it: seqproc cancel {handle.id}")
    finally:
        if out.as_json:
            out.json(handle.record)
        elif out.quiet and print_id:
            out.data(handle.id)
    return code


@contextmanager
def _tracked(handle: JobHandle, track: Track | None, display: _Display, out: Output) -> Iterator[Show]:
    """What to call with each progress, so that it is shown and the tracker hears of it."""
    if track is None:
        yield display.show
        return
    from jobs.tracking.tracked import tracked

    def tell(level: int, text: str) -> None:
        if level < logging.WARNING:
            display.say(text)
        elif out.quiet:
            warning(text)  # is said even then
        else:
            display.say(f"Warning: {text}")

    with tracked(handle, track, tell) as told:

        def each(progress: Progress) -> None:
            display.show(progress)
            told(progress)

        yield each


@contextmanager
def _display(handle: JobHandle, out: Output) -> Iterator[_Display]:
    """A bar, plain lines, or nothing. News of the job is told once."""
    told: set[str] = set()

    def news(say: Say) -> None:
        notice = handle.record.notice
        if notice and notice not in told:
            told.add(notice)
            say(notice)

    if out.quiet:
        yield _Display(lambda _progress: None, lambda _text: None)
        return
    console = stderr_console()
    if not console.is_terminal:
        lines = _Lines(handle, out)

        def show_line(progress: Progress) -> None:
            news(out.hint)
            lines.show(progress)

        yield _Display(show_line, out.hint)
        return

    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = ("{task.description}", "{task.fields[sequences]}", "{task.fields[tokens]}", "{task.fields[rate]}")
    first, *rest = (TextColumn(column, markup=False) for column in columns)
    with Bar(first, BarColumn(), *rest, console=console) as bar:
        task = bar.add_task(handle.record.state, total=None, sequences="", tokens="", rate="")

        def say(text: str) -> None:
            bar.console.print(clean(text), soft_wrap=True)

        def show_bar(progress: Progress) -> None:
            news(say)
            bar.update(
                task,
                description=str(progress.state),
                completed=progress.sequences,
                total=max(progress.num_sequences, 1) if progress.sealed else None,
                sequences=_sequences(progress),
                tokens=f"{progress.tokens:,} tokens",
                rate=_rate(progress),
            )

        yield _Display(show_bar, say)


class _Lines:
    """A line of progress at most every few seconds, and only when something moved."""

    def __init__(self, handle: JobHandle, out: Output) -> None:
        self._handle, self._out = handle, out
        self._next = 0.0
        self._last: tuple[JobState, int] | None = None

    def show(self, progress: Progress) -> None:
        now = time.monotonic()
        moved = (progress.state, progress.tokens)
        if progress.state.ended or now < self._next or moved == self._last:
            return
        self._next, self._last = now + _LINE_EVERY, moved
        parts = [
            f"{self._handle.id} {progress.state}",
            _sequences(progress),
            f"{progress.tokens:,} tokens",
            _rate(progress),
        ]
        self._out.hint("  ".join(part for part in parts if part))


def _sequences(progress: Progress) -> str:
    """How many of how many; of a job to which prompts still come nobody knows that."""
    so_far = "" if progress.sealed else " so far"
    return f"{progress.sequences:,}/{progress.num_sequences:,} sequences{so_far}"


def _rate(progress: Progress) -> str:
    if progress.tokens_per_second is None:
        return ""
    eta = "" if progress.eta_seconds is None else f"  ETA {seconds(progress.eta_seconds)}"
    return f"{progress.tokens_per_second:,.0f} tok/s{eta}"


def _summary(handle: JobHandle, progress: Progress, took: float, out: Output) -> None:
    """How it ended, in one line; a failure is said even under `-q`."""
    made = f"{progress.sequences:,} of {plural(progress.num_sequences, 'sequence')}, {plural(progress.tokens, 'token')}"
    line = f"Job {handle.id} {progress.state}: {made}, watched for {seconds(took)}"
    if handle.record.truncated:
        line += f"; {handle.record.truncated}"
    if progress.prompt_errors:
        line += f"; {plural(progress.prompt_errors, 'prompt')} could not be done, see: seqproc status {handle.id}"
    if progress.state is JobState.FAILED:
        error(
            f"job {handle.id} failed: {handle.record.error or plural(handle.record.failed_shards, 'shard') + ' failed'}"
        )
        out.hint(
            f"{made}. Why: seqproc logs {handle.id}   Again: seqproc retry --failed-only {handle.id}\n"
            f"What is done: seqproc fetch {handle.id} -o DIR"
        )
        return
    out.hint(line)
    if progress.state is JobState.CANCELLED:
        out.hint(f"The rest: seqproc retry {handle.id}   What is done: seqproc fetch {handle.id} -o DIR")
    else:
        out.hint(f"Results: seqproc fetch {handle.id} -o DIR   Look at them: seqproc show {handle.id}")
