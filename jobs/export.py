"""A job's results as a few files to take away: the sequences in one of four forms, `errors.jsonl`, spec and manifest.

Files are made in a hidden folder inside the target and moved into place when all are there, the manifest last: a folder
with a manifest is a whole export. An export of Parquet is read back by `JobResults.from_folder`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from jobs.errors import ResultsError
from jobs.files import flush, make_folder, sha256_of, write_json, writing
from jobs.jsonl import write_jsonl
from jobs.manifest import read_manifest
from jobs.openai_output import output_lines
from jobs.parquet import concatenate
from jobs.results import Contents, JobResults, ResultFile, errors_of, rows_of
from jobs.rollouts import rollout_rows
from jobs.sidecars import table_of

Format = Literal["parquet", "jsonl", "openai", "trl"]
OnFile = Callable[[int, int], None]
_NAMES: dict[Format, str] = {
    "parquet": "sequences.parquet",
    "jsonl": "sequences.jsonl",
    "openai": "openai.jsonl",
    "trl": "trl.jsonl",
}
_STAGE = ".seqproc-"  # prefix of the hidden folder


def export(
    results: JobResults,
    target: Path,
    format: Format = "parquet",
    *,
    partial: bool = False,
    on_file: OnFile | None = None,
) -> list[Path]:
    """Writes the job's results to the folder `target` and returns its files, the sequences first.

    Parquet and JSONL hold a row a sequence, "openai" an output line of an OpenAI batch a prompt, "trl" a rollout of
    TRL's a line. An earlier export of the same job is replaced. In JSON, log-probabilities of −inf are null.
    `on_file` is called with the number of shards that are written, and of all.

    Raises:
        NotFinished: the job has not ended, and not `partial`.
        ResultsError: `target` holds something else, or cannot be written; a result file is missing or damaged.
    """
    contents = results.contents(partial=partial)
    _refuse_other(target, contents.job_id)
    made_here = not target.exists()
    make_folder(target)
    with writing(target):
        stage = Path(tempfile.mkdtemp(prefix=_STAGE, dir=target))
    try:
        sequences = stage / _NAMES[format]
        _write(results, contents, sequences, format, on_file)
        if any(file.errors for file in contents.files):
            write_jsonl(stage / "errors.jsonl", errors_of(results.here(contents.files)))
        write_json(stage / "spec.json", contents.spec)
        write_json(stage / "manifest.json", _manifest(results.manifest(), contents, sequences))
        with writing(target):
            _move(stage, target)
    except BaseException:
        shutil.rmtree(target if made_here else stage, ignore_errors=True)
        raise
    names = [sequences.name, "errors.jsonl", "spec.json", "manifest.json"]
    return [target / name for name in names if (target / name).exists()]


def _write(results: JobResults, contents: Contents, target: Path, format: Format, on_file: OnFile | None) -> None:
    """The sequences, a shard at a time."""
    files = results.here(contents.files)
    if on_file is not None:
        files = _counted(files, len(contents.files), on_file)
    if format == "parquet":
        concatenate((table_of(file, contents.own) for file in files), target, contents.schema)
    elif format == "jsonl":
        write_jsonl(target, rows_of(files))
    elif format == "openai":
        write_jsonl(target, output_lines(contents, files, results.manifest()["created_at"]))
    else:
        write_jsonl(target, rollout_rows(rows_of(files)))


def _counted(files: Iterator[ResultFile], total: int, on_file: OnFile) -> Iterator[ResultFile]:
    for number, file in enumerate(files):
        on_file(number, total)
        yield file
    on_file(total, total)


def _refuse_other(target: Path, job_id: str) -> None:
    """Raises ResultsError unless the folder is new, empty, or an export of this job."""
    with writing(target):
        if not target.exists() or all(entry.name.startswith(_STAGE) for entry in target.iterdir()):
            return
    try:
        manifest = read_manifest(target)
    except ResultsError:
        manifest = {}
    if manifest.get("export") is not True or manifest["id"] != job_id:
        raise ResultsError(f"{target} is not empty and holds no export of job {job_id}: name a new or empty folder")


def _manifest(manifest: dict[str, Any], contents: Contents, sequences: Path) -> dict[str, Any]:
    """The job's manifest, with the one exported file in place of the shards' files and without the snapshot."""
    errors = sequences.with_name("errors.jsonl") if any(file.errors for file in contents.files) else None
    entry = {
        "file": sequences.name,
        "sha256": sha256_of(sequences),
        "bytes": sequences.stat().st_size,
        "sequences": sum(file.sequences for file in contents.files),
        "tokens": sum(file.tokens for file in contents.files),
        "errors_file": errors.name if errors else None,
        "errors_sha256": sha256_of(errors) if errors else None,
        "prompt_errors": sum(file.prompt_errors for file in contents.files),
    }
    changes = {"snapshot": {**manifest["snapshot"], "segments": 0}, "added_columns": contents.added, "sidecars": []}
    return {**manifest, **changes, "export": True, "files": [entry]}


def _move(stage: Path, target: Path) -> None:
    """Every file into place, the manifest last; what an earlier export left in another format goes."""
    names = sorted(path.name for path in stage.iterdir() if path.name != "manifest.json")
    for name in [*names, "manifest.json"]:
        (stage / name).replace(target / name)
    for stale in {*_NAMES.values(), "errors.jsonl"} - set(names):
        (target / stale).unlink(missing_ok=True)
    stage.rmdir()
    flush(target)
