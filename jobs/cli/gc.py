"""`gc` and `delete`: what no job needs, jobs past their ttl, and jobs that nobody wants any more, taken away."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.cli.output import JobArgument, JsonFlag, Output, QuietFlag
from jobs.errors import UsageError
from jobs.text import clean_line, plural, size


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would go, and leave it.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove files that no job needs.

    They are what dead workers, abandoned submits and deleted jobs left behind; and jobs past their ttl, altogether.
    """
    from jobs.client import Client
    from jobs.gc import collect

    out = Output(as_json=as_json)
    with Client() as client:
        collected = collect(client.store, client.settings, dry_run=dry_run)
    if out.as_json:
        out.json(collected)
        return
    verb = "Would remove" if dry_run else "Removed"
    files, folders = plural(collected.files, "file"), plural(collected.folders, "folder")
    expired = f"; {plural(collected.expired, 'job')} past the ttl" if collected.expired else ""
    out.data(f"{verb} {files} and {folders}, {size(collected.bytes)}{expired}")


def delete(
    job: JobArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Delete an ended job with its results. There is no way back."""
    from jobs.client import Client

    out = Output(as_json=as_json, quiet=quiet)
    with Client() as client:
        handle = client.get(job)
        record = handle.record
        if not yes:
            if not sys.stdin.isatty():
                raise UsageError(f"nobody is here to be asked whether job {record.id} may go: give --yes")
            named = f" ({clean_line(record.name)})" if record.name else ""
            made = plural(record.done_sequences, "sequence")
            typer.confirm(f"Delete job {record.id}{named}, {record.state}, with {made}?", abort=True, err=True)
        handle.delete()
    out.answer({"id": record.id, "deleted": True}, record.id, f"{record.id} deleted")
