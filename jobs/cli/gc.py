"""`gc`: files that no row names, taken away."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli.output import JsonFlag, Output, plural, size


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would go, and leave it.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove files that no job needs.

    They are what dead workers, abandoned submits and deleted jobs left behind.
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
    out.data(f"{verb} {files} and {folders}, {size(collected.bytes)}")
