"""`logs`: what the workers wrote about a job."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from jobs.cli.output import JobArgument, Output
from jobs.text import clean_line


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show what workers logged about a job."""
    from jobs.client import Client

    out = Output(as_json=as_json)
    with Client() as client:
        handle = client.get(job)
        said = False
        for line in handle.logs(follow=follow):
            said = True
            typer.echo(json.dumps(line) if as_json else _text(line))
        if not said:
            out.hint(f"No worker has said anything about job {handle.id}, which is {handle.record.state}.")


def _text(line: dict[str, Any]) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(float(line.get("time", 0))))
    where = f"{line.get('worker', '?')} shard {line.get('shard', '?')} attempt {line.get('attempt', '?')}"
    text = clean_line(f"{clock} {line.get('level', '')} {where}: {line.get('message', '')}")
    return "\n".join([text, *(f"    {clean_line(part)}" for part in str(line.get("traceback", "")).splitlines())])
