"""A job's results as a few files to take away: `sequences.parquet` or `.jsonl`, `errors.jsonl`, spec and manifest.

Files are made in a hidden folder inside the target and moved into place when all are there, the manifest last: a folder
with a manifest is a whole export. An export of Parquet is read back by `JobResults.from_folder`.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from jobs.errors import ResultsError
from jobs.files import flush, make_folder, sha256_of, write_json, writing
from jobs.jsonl import write_jsonl
from jobs.manifest import read_manifest
from jobs.parquet import concatenate
from jobs.results import Contents, JobResults, errors_of, rows_of

Format = Literal["parquet", "jsonl"]
_STAGE = ".seqproc-"  # prefix of the hidden folder


def export(results: JobResults, target: Path, format: Format = "parquet", *, partial: bool = False) -> list[Path]:
    """Writes the job's results to the folder `target` and returns its files, the sequences first.

    An earlier export of the same job is replaced. In JSONL, log-probabilities of −inf are null.

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
        sequences = stage / f"sequences.{format}"
        if format == "parquet":
            concatenate((file.path for file in results.here(contents.files)), sequences)
        else:
            write_jsonl(sequences, rows_of(results.here(contents.files)))
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
    snapshot = {**manifest["snapshot"], "segments": 0}
    return {**manifest, "export": True, "files": [entry], "snapshot": snapshot}


def _move(stage: Path, target: Path) -> None:
    """Every file into place, the manifest last; what an earlier export left in the other format goes."""
    names = sorted(path.name for path in stage.iterdir() if path.name != "manifest.json")
    for name in [*names, "manifest.json"]:
        (stage / name).replace(target / name)
    for stale in {"sequences.parquet", "sequences.jsonl", "errors.jsonl"} - set(names):
        (target / stale).unlink(missing_ok=True)
    stage.rmdir()
    flush(target)
