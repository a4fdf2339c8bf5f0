"""`fetch`: a job's results as files in a folder of one's own."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.output import JobArgument, JsonFlag, Output, QuietFlag


class Format(StrEnum):
    """What `fetch` writes."""

    PARQUET = "parquet"
    JSONL = "jsonl"


def fetch(
    job: JobArgument,
    out_dir: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write to; made if missing.")],
    format: Annotated[Format, typer.Option(help="One file of rows, in this form.")] = Format.PARQUET,
    partial: Annotated[bool, typer.Option("--partial", help="Take what there is of an unfinished job.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write a job's results to a folder, one row a sequence."""
    from jobs.client import Client
    from jobs.export import export

    out = Output(as_json=as_json, quiet=quiet)
    with Client() as client:
        handle = client.get(job)
        files = export(handle.results, out_dir, format.value, partial=partial)
    out.answer({"id": handle.id, "files": files}, handle.id, *map(str, files))
