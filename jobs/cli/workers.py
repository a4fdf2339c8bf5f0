"""`workers`: who claims shards, on which device, what each is doing, and who does not answer any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.cli.output import JsonFlag, Output, QuietFlag
from jobs.text import seconds, size

if TYPE_CHECKING:
    from jobs.presence import WorkerStatus

_HEADER = ("ID", "STATE", "HOST", "DEVICE", "MEMORY", "MODEL", "QUEUES", "SHARD", "TOK/S", "SEEN", "NOTE")


def workers(as_json: JsonFlag = False, quiet: QuietFlag = False) -> None:
    """List workers, oldest first.

    One that left in order is not listed; one that died is, until another worker has taken its shards back.
    """
    from jobs.client import Client

    out = Output(as_json=as_json, quiet=quiet)
    with Client() as client:
        listed = client.workers()
    out.listing(listed, _HEADER, _row, none="No worker is alive. Start one: seqproc worker")


def _row(worker: WorkerStatus) -> tuple[str, ...]:
    return (
        worker.id,
        worker.state,
        worker.host,
        worker.device,
        _memory(worker),
        worker.model or "",
        ",".join(worker.queues),
        "" if worker.job_id is None else f"{worker.job_id}/{worker.shard}",
        "" if worker.tokens_per_second is None else f"{worker.tokens_per_second:,.0f}",
        f"{seconds(worker.seen_seconds_ago)} ago",
        _note(worker),
    )


def _memory(worker: WorkerStatus) -> str:
    if worker.memory_used is None or worker.memory_total is None:
        return ""
    return f"{size(worker.memory_used)} of {size(worker.memory_total)}"


def _note(worker: WorkerStatus) -> str:
    if worker.state == "dead":
        return f"process {worker.pid} is gone"
    if worker.state == "silent":
        return "does not answer"
    return worker.paused or ""
