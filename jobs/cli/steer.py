"""`cancel` and `retry`: the two things a person can ask of a job that exists."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.cli.output import JobArgument, JsonFlag, Output, QuietFlag, hint_unrung
from jobs.text import plural


def cancel(job: JobArgument, as_json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """Stop a job. What is done stays readable."""
    from jobs.client import Client

    out = Output(as_json=as_json, quiet=quiet)
    with Client() as client:
        record = client.get(job).cancel()
    out.answer(record, record.id, f"{record.id} {record.state}")
    if record.state.ended:
        out.hint(f"The rest: seqproc retry {record.id}   What is done: seqproc fetch {record.id} -o DIR")
    else:
        out.hint(f"What runs now stops within seconds. See it end: seqproc watch {record.id}")


def retry(
    job: JobArgument,
    failed_only: Annotated[bool, typer.Option("--failed-only", help="Leave cancelled shards as they are.")] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Queue what failed or was cancelled again. What is done is not made twice."""
    from jobs.client import Client

    out = Output(as_json=as_json, quiet=quiet)
    with Client() as client:
        handle = client.get(job)
        record = handle.retry(failed_only=failed_only)
    out.answer(record, record.id, f"{record.id} {record.state}")
    hint_unrung(handle.unrung, out)
    out.hint(f"{plural(record.pending_shards, 'shard')} to do. Run and follow it: seqproc wait {record.id}")
