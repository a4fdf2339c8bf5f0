"""`list` and `status`: which jobs there are, and how one of them is."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.output import JobArgument, JsonFlag, Output, QuietFlag
from jobs.labels import label_of
from jobs.states import JobState, ShardState
from jobs.text import clean_line, moment, plural, seconds

if TYPE_CHECKING:
    from jobs.client import JobHandle
    from jobs.records import Job, Webhook
    from jobs.store import Store

_HEADER = ("ID", "STATE", "SEQUENCES", "TOKENS", "AGE", "MODEL", "NAME")
_REASONS_SHOWN = 5  # of shards and prompts that failed: enough to see the pattern


def list_jobs(
    state: Annotated[list[JobState] | None, typer.Option(help="Only jobs in this state; repeatable.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this model.")] = None,
    label: Annotated[str | None, typer.Option(metavar="KEY[=VALUE]", help="Only jobs with this label.")] = None,
    queue: Annotated[str | None, typer.Option(help="Only jobs of this queue.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only jobs of this user.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 50,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """List jobs, newest first."""
    from jobs.client import Client

    out = Output(as_json=as_json, quiet=quiet)
    with Client() as client:
        found = client.jobs(
            states=state or None,
            model=model,
            label=label_of(label),
            queue=queue,
            owner=owner,
            limit=limit,
        )
    jobs = [handle.record for handle in found]
    if len(jobs) == limit and not out.as_json:
        out.hint(f"The newest {limit}; -n shows more.")
    out.listing(jobs, _HEADER, _row, none="No such jobs. Submit one: seqproc submit --help")


def _row(job: Job) -> tuple[str, ...]:
    done = f"{job.done_sequences:,}/{job.num_sequences:,}{'' if job.sealed else ' so far'}"
    age = seconds(max(0.0, time.time() - job.created_at))
    return (job.id, job.state, done, f"{job.done_tokens:,}", age, job.model, job.name or "")


def status(job: JobArgument, as_json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """Show how a job is and what went wrong."""
    from jobs.client import Client
    from jobs.progress import JobStatus

    out = Output(as_json=as_json, quiet=quiet)
    with Client() as client:
        handle = client.get(job)
        if out.as_json:
            progress = handle.progress  # reads the row again, so that both tell of one moment
            out.json(JobStatus.of(handle.record, progress, handle.webhooks))
        elif out.quiet:
            out.data(handle.id)
        else:
            for name, text in _lines(handle):
                out.data(f"{name + ':':<12} {clean_line(text)}")
            for reason in _reasons(client.store, handle):
                out.data(f"  {clean_line(reason)}")


def _lines(handle: JobHandle) -> list[tuple[str, str]]:
    progress, job = handle.progress, handle.record
    shards = (
        (job.done_shards, "done"),
        (job.running_shards, "running"),
        (job.pending_shards, "pending"),
        (job.failed_shards, "failed"),
        (job.cancelled_shards, "cancelled"),
    )
    so_far = "" if job.sealed else " so far, more may come"
    lines = [
        ("id", job.id),
        ("state", job.state),
        ("name", job.name or ""),
        ("labels", ", ".join(f"{key}={value}" for key, value in job.labels.items())),
        ("kind", job.kind if job.kind != "generate" else ""),
        ("model", job.model),
        ("adapter", job.adapter or ""),
        ("queue", f"{job.queue}, priority {job.priority}"),
        ("seed", str(job.spec["seed"])),
        ("prompts", f"{job.num_prompts:,} × {job.spec['G']}{so_far}"),
        ("sequences", f"{progress.sequences:,} of {progress.num_sequences:,}{so_far}"),
        ("truncated", job.truncated or ""),
        ("tokens", f"{progress.tokens:,}"),
        ("shards", ", ".join(f"{count:,} {what}" for count, what in shards if count)),
        ("created", f"{moment(job.created_at)} by {job.owner}"),
        ("started", moment(job.started_at)),
        ("ended", _ended(job)),
        ("kept", _kept(job)),
        *(("webhook", _webhook(webhook)) for webhook in handle.webhooks),
        ("notice", job.notice or ""),
        ("error", job.error or ""),
    ]
    return [(name, text) for name, text in lines if text]


def _ended(job: Job) -> str:
    if job.ended_at is None:
        return ""
    took = "" if job.started_at is None else f", after {seconds(job.ended_at - job.started_at)}"
    return moment(job.ended_at) + took


def _kept(job: Job) -> str:
    if job.ttl is None:
        return ""
    if job.ended_at is None:
        return f"for {job.ttl / 86_400:g} days after its end"
    return f"until {moment(job.ended_at + job.ttl)}, then gc deletes it"


def _webhook(webhook: Webhook) -> str:
    tries = "" if webhook.tries == 1 else f" at try {webhook.tries}"
    if webhook.delivered_at is not None:
        return f"delivered {moment(webhook.delivered_at)}{tries}"
    if webhook.next_try_at is None:
        return f"given up after {plural(webhook.tries, 'attempt')}: {webhook.error}"
    failed = f": {webhook.error}" if webhook.error else ""
    return f"tried {plural(webhook.tries, 'time')}, next {moment(webhook.next_try_at)}{failed}"


def _reasons(store: Store, handle: JobHandle) -> list[str]:
    """Why shards and prompts failed, the first few of each."""
    lines = []
    job = handle.record
    if job.failed_shards:
        failed = store.iter_shards(job.id, ShardState.FAILED)
        lines += [f"shard {shard.index} failed: {shard.error}" for shard in islice(failed, _REASONS_SHOWN)]
        lines += _more(job.failed_shards, "shard")
    if job.prompt_errors:
        errors = islice(handle.results.errors(partial=True), _REASONS_SHOWN)
        lines += [f"prompt {row['prompt_index']} ({row['custom_id']}): {row['error']}" for row in errors]
        lines += _more(job.prompt_errors, "prompt")
    return lines


def _more(count: int, noun: str) -> list[str]:
    return [f"… and {plural(count - _REASONS_SHOWN, noun)} more"] if count > _REASONS_SHOWN else []
