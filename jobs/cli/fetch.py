"""`fetch`: a job's results as files in a folder of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli.output import JobArgument, JsonFlag, Output, QuietFlag, stderr_console


class Format(StrEnum):
    """What `fetch` writes."""

    PARQUET = "parquet"
    JSONL = "jsonl"
    OPENAI = "openai"
    TRL = "trl"


def fetch(
    job: JobArgument,
    out_dir: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to write to; made if missing.")],
    format: Annotated[
        Format, typer.Option(help="One file: rows, lines of an OpenAI batch's output, TRL rollouts.")
    ] = Format.PARQUET,
    partial: Annotated[bool, typer.Option("--partial", help="Take what there is of an unfinished job.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write a job's results to a folder, in one file."""
    from jobs.client import Client
    from jobs.export import export

    out = Output(as_json=as_json, quiet=quiet)
    with Client() as client:
        handle = client.get(job)
        with _bar(out) as on_file:
            files = export(handle.results, out_dir, format.value, partial=partial, on_file=on_file)
    out.answer({"id": handle.id, "files": files}, handle.id, *map(str, files))


@contextmanager
def _bar(out: Output) -> Iterator[Callable[[int, int], None] | None]:
    """What to call with the number of shards written and of all; None where nobody looks."""
    console = stderr_console()
    if out.quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("Fetching", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
