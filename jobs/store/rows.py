"""From rows to records. The columns bear the names of the records' fields; only enums and labels need a hand."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sqlalchemy import Row, Select, Table, select

from jobs.records import Attempt, Job, LostSpec, Shard, Sidecar, Span, Webhook, Worker
from jobs.states import JobState, ShardState
from jobs.store.schema import attempts, jobs, shards, sidecars, webhooks, workers


def _columns(record: type, table: Table) -> list[Any]:
    return [table.c[field.name] for field in fields(record) if field.name in table.c]


JOB_COLUMNS = _columns(Job, jobs)
SHARD_COLUMNS = _columns(Shard, shards)
ATTEMPT_COLUMNS = _columns(Attempt, attempts)
SPAN_COLUMNS = _columns(Span, attempts)
WORKER_COLUMNS = _columns(Worker, workers)
SIDECAR_COLUMNS = _columns(Sidecar, sidecars)
WEBHOOK_COLUMNS = _columns(Webhook, webhooks)


def select_jobs() -> Select[Any]:
    """All jobs but the deleted ones, whose rows only wait for their files to go."""
    return select(*JOB_COLUMNS).where(jobs.c.deleted_at.is_(None))


def job_record(row: Row[Any]) -> Job:
    # One damaged row must not hide all others.
    spec = row.spec if isinstance(row.spec, dict) else LostSpec(row.spec)
    labels = spec.get("labels") if isinstance(spec.get("labels"), dict) else {}
    return Job(**dict(row._mapping) | {"state": JobState(row.state), "spec": spec, "labels": labels})


def shard_record(row: Row[Any]) -> Shard:
    data = dict(row._mapping)
    return Shard(**data | {"state": ShardState(row.state)})


def attempt_record(row: Row[Any]) -> Attempt:
    return Attempt(**row._mapping)


def worker_record(row: Row[Any]) -> Worker:
    return Worker(**row._mapping)


def webhook_record(row: Row[Any]) -> Webhook:
    return Webhook(**row._mapping)
