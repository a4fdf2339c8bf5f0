"""`manifest.json`: what a job's folder holds and how it came about. Derived from the database, which is the truth.

A manifest is written whole by whoever ends the job, and again by anyone who finds it behind the job's revision. It is
what reads a folder that was copied away from its database. Times are seconds since the epoch.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobs.errors import ResultsError
from jobs.files import read_json, sha256_of, write_json
from jobs.jsonl import finite, read_jsonl
from jobs.paths import JobPaths
from jobs.records import Attempt, Shard, Sidecar
from jobs.settings import Settings
from jobs.snapshot import digest_of
from jobs.states import ShardState
from jobs.store import Store

FORMAT = 1
_JOB_FIELDS = ("id", "owner", "name", "labels", "kind", "model", "adapter", "queue", "priority", "state", "error")
_TIMES = ("created_at", "started_at", "ended_at")
_COUNTS = (
    *("num_prompts", "num_sequences", "num_shards", "done_shards", "failed_shards", "cancelled_shards"),
    *("done_sequences", "done_tokens", "prompt_errors"),
)


def build(store: Store, job_id: str) -> dict[str, Any]:
    """The manifest of a job as the database has it now, as plain data.

    The job is read first: shards read after it may be newer than `revision` says, never older.
    """
    job = store.job(job_id)
    shards = store.shards(job_id)
    details: list[dict[str, Any]] = []
    numbers: dict[str, int] = {}
    attempts = [_attempt(attempt, details, numbers) for attempt in store.attempts(job_id)]
    manifest = {
        "format": FORMAT,
        **{name: getattr(job, name) for name in ("revision", *_JOB_FIELDS, *_TIMES)},
        "seed": job.spec["seed"],
        "identity": job.identity,
        "spec": job.spec,
        "sealed": job.sealed,
        "truncated": job.truncated,
        "snapshot": {
            "digest": job.snapshot_digest or None,
            "prompts": job.num_prompts,
            "segments": 1 + max((shard.segment for shard in shards), default=-1),
        },
        "counts": {name: getattr(job, name) for name in _COUNTS},
        "files": [_file(shard) for shard in shards if shard.state is ShardState.DONE],
        "missing": [_missing(shard) for shard in shards if shard.state is not ShardState.DONE],
        "sidecars": [_sidecar(sidecar) for sidecar in store.sidecars(job.id)],
        "attempts": attempts,
        "details": details,
        "drift": [found["drift"] for found in details if found.get("drift")],
        "written_by": f"sequence-processor {version('sequence-processor')}",
    }
    return dict(finite(manifest))


def ensure_manifest(store: Store, settings: Settings, job_id: str) -> None:
    """Brings an ended job's manifest on disk up to its revision; does nothing if it is, or if the folder is gone.

    Raises ResultsError if it cannot be written, JobNotFound.
    """
    paths = JobPaths(settings.results, job_id)
    while paths.folder.is_dir():
        job = store.job(job_id)
        if not job.state.ended:  # queued again: whoever ends it writes it
            return
        if not job.snapshot_digest:
            fix_digest(store, settings, job_id)
            continue
        if job.manifest_revision == job.revision and _revision_on_disk(paths) == job.revision:
            return
        manifest = build(store, job_id)
        write_json(paths.manifest, manifest)
        if store.manifest_written(job_id, manifest["revision"]):
            return


def fix_digest(store: Store, settings: Settings, job_id: str) -> None:
    """Reckons what the prompts of a sealed job are that came as a stream; does nothing if that is known.

    Raises ResultsError if they cannot be read, JobNotFound.
    """
    job = store.job(job_id)
    if job.sealed and not job.snapshot_digest:
        digest = digest_of(JobPaths(settings.results, job_id), store.segments(job_id))
        store.fix_snapshot(job_id, digest)


def verify(folder: Path) -> list[str]:
    """Checks everything in a job's folder, or an export, against its manifest. Returns a sentence for each problem.

    Files by digest, the snapshot by its digest, the spec by its content. Raises ResultsError
    if there is no manifest to check against.
    """
    paths = JobPaths.at(folder)
    manifest = read_manifest(folder)
    found: list[str] = []
    for entry in manifest["files"]:
        found += _problems_of_file(paths, entry)
    for entry in manifest.get("sidecars", ()):  # older manifests have none
        found += _problems_of_file(paths, {"errors_file": None, **entry})
    try:
        if read_json(paths.spec) != manifest["spec"]:
            found.append(f"{paths.spec} is not the spec that the job was submitted with")
        snapshot = manifest["snapshot"]
        if snapshot["segments"] and digest_of(paths, snapshot["segments"]) != snapshot["digest"]:
            found.append(f"{paths.prompts} does not hold the prompts that the job was submitted with")
    except ResultsError as error:
        found.append(str(error))
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder. Raises ResultsError if there is none, or one of a newer version."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise ResultsError(f"{folder} has no manifest.json: it is no folder of a job, or its job has not ended")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ResultsError(f"{path} is not of format {FORMAT}, the one that this version reads; update or fetch again")
    return manifest


def _attempt(attempt: Attempt, details: list[dict[str, Any]], numbers: dict[str, int]) -> dict[str, Any]:
    """An attempt as plain data. Details are the same for most attempts: they stand once, in `details`, by number."""
    number = None
    if attempt.details is not None:
        number = numbers.setdefault(json.dumps(attempt.details, sort_keys=True), len(details))
        if number == len(details):
            details.append(attempt.details)
    names = ("shard", "attempt", "worker_id", "claimed_at", "ended_at", "outcome", "error", "tokens")
    return {**{name: getattr(attempt, name) for name in names}, "details": number}


def _file(shard: Shard) -> dict[str, Any]:
    names = ("file", "sha256", "bytes", "sequences", "tokens", "errors_file", "prompt_errors", "attempt")
    errors_sha256 = JobPaths.digest_in(shard.errors_file) if shard.errors_file else None
    return {**_place(shard), **{name: getattr(shard, name) for name in names}, "errors_sha256": errors_sha256}


def _sidecar(sidecar: Sidecar) -> dict[str, Any]:
    names = ("kind", "name", "shard", "of_sha256", "file", "sha256", "bytes", "rows", "unjudged", "created_at")
    return {name: getattr(sidecar, name) for name in names}


def _missing(shard: Shard) -> dict[str, Any]:
    return {**_place(shard), "state": shard.state, "failures": shard.failures, "error": shard.error}


def _place(shard: Shard) -> dict[str, Any]:
    return {"shard": shard.index, "first_prompt": shard.first_prompt, "prompts": shard.stop - shard.start}


def _revision_on_disk(paths: JobPaths) -> int | None:
    """None if there is no manifest, or a damaged one: it is then written again."""
    try:
        revision = read_manifest(paths.folder)["revision"]
    except ResultsError:
        return None
    return int(revision)


def _problems_of_file(paths: JobPaths, entry: dict[str, Any]) -> list[str]:
    found = []
    # Prompt errors of earlier versions have no digest, only a number.
    for name, sha256 in ((entry["file"], entry["sha256"]), (entry["errors_file"], entry.get("errors_sha256"))):
        if name is None:
            continue
        path = paths.resolve(name)
        try:
            if sha256 is None and sum(1 for _ in read_jsonl(path)) != entry["prompt_errors"]:
                found.append(f"{path} does not hold the {entry['prompt_errors']} prompt errors that were committed")
            if sha256 is not None and sha256_of(path) != sha256:
                found.append(f"{path} is not the file that was committed: its sha256 differs from the manifest's")
        except ResultsError as error:
            found.append(str(error))
    return found
