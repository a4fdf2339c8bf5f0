"""`stream`: a job's sequences on standard output as they are done, for whatever reads a pipe."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.follow import INTERRUPTED
from jobs.cli.output import JobArgument, Output, QuietFlag
from jobs.text import plural

if TYPE_CHECKING:
    from jobs.client import JobHandle


def stream(
    job: JobArgument,
    after: Annotated[
        str | None, typer.Option(metavar="CURSOR", help="Go on behind the row that has this `cursor`.")
    ] = None,
    quiet: QuietFlag = False,
) -> None:
    """Print a job's sequences as its shards are done, a line of JSON each; start a worker if none lives.

    Each line has a `cursor` to go on from. Exit code 0: all were printed, 1: the job failed or was cancelled.
    """
    from jobs.client import Client

    out = Output(quiet=quiet)
    with Client() as client:
        _print(client.get(job), after, out)


def _print(handle: JobHandle, after: str | None, out: Output) -> None:
    from jobs.jsonl import finite

    count = 0
    try:
        for row in handle.stream(after=after):
            typer.echo(json.dumps(finite(row)))  # ASCII, and flushed: whoever reads the pipe has whole lines
            after = row["cursor"]
            count += 1
    except KeyboardInterrupt:
        behind = f" --after {after}" if after is not None else ""
        out.hint(f"\nThe job goes on. Go on reading: seqproc stream {handle.id}{behind}")
        raise typer.Exit(INTERRUPTED) from None
    job = handle.refresh()
    line = f"Job {job.id} {job.state}: {plural(count, 'sequence')} printed"
    if job.truncated:
        line += f"; {job.truncated}"
    if job.prompt_errors:
        line += f"; {plural(job.prompt_errors, 'prompt')} could not be done, see: seqproc status {job.id}"
    out.hint(line)
