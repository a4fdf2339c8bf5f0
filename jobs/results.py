"""Readers of what a job made. They trust the database, or the manifest of a copied folder, never a directory listing.

Only shards that were committed are read; their files never change. Rows come in order of (prompt_index, sample_index),
one row in memory at a time unless a method says otherwise. A job that has not ended is read only with `partial=True`.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.diagnostics import columns_of
from jobs.errors import NotFinished, ResultsError
from jobs.jsonl import read_jsonl
from jobs.manifest import build, read_manifest
from jobs.openai_output import output_lines
from jobs.parquet import read_rows, schema_with
from jobs.paths import JobPaths
from jobs.records import Shard, Sidecar
from jobs.rollouts import rollouts
from jobs.settings import Settings
from jobs.sidecars import RESAMPLING, REWARD, ROUND, Added, added_of, table_of, values_of, with_added
from jobs.states import JobState, ShardState
from jobs.store import Store

if TYPE_CHECKING:
    import datasets
    import pandas

    from sequence_processing.containers import BatchedSequences, LogprobResults


@dataclass(frozen=True, slots=True)
class ResultFile:
    """The committed files of one shard; of an export, all there is. `errors` is there if prompts failed."""

    path: Path
    errors: Path | None
    sha256: str
    sequences: int
    tokens: int
    prompt_errors: int
    shard: int | None = None  # None: of an export
    added: tuple[Added, ...] = ()  # columns beside those of the file, the same for every file of a job
    done_order: int | None = None  # of the shard among all that are done; None where that is not known

    @classmethod
    def of(cls, shard: Shard, path: Path, errors: Path | None, added: tuple[Added, ...] = ()) -> ResultFile:
        """The files of a done shard, which lie there."""
        totals = (shard.sequences, shard.tokens, shard.prompt_errors)
        return cls(path, errors, shard.sha256 or "", *totals, shard.index, added, shard.done_order)


@dataclass(frozen=True, slots=True)
class Contents:
    """What the database, or the manifest, says at one moment."""

    job_id: str
    state: JobState
    spec: dict[str, Any]
    done_shards: int
    num_shards: int
    files: list[ResultFile]  # in order of their prompts
    added: list[str] = field(default_factory=list)  # columns that later measurements brought, `reward_math_answer`

    @property
    def own(self) -> pa.Schema:
        """The columns of the files."""
        return schema_with(columns_of(self.spec))

    @property
    def schema(self) -> pa.Schema:
        """The columns that readers see."""
        return pa.schema([*self.own, *((name, pa.float64()) for name in self.added)])


class JobResults:
    """The results of one job. Every method looks afresh, so that a running job's rows grow from call to call."""

    def __init__(
        self,
        paths: JobPaths,
        contents: Callable[[], Contents],
        manifest: Callable[[], dict[str, Any]],
        bring: Callable[[ResultFile], None] | None = None,
    ) -> None:
        """`bring`: called before a file is read, for files that may lie elsewhere; raises ResultsError."""
        self.paths = paths
        self._contents = contents
        self._bring = bring
        self.manifest = manifest
        """The manifest as plain data: of the database as it is now, or of the copied folder."""

    @classmethod
    def of(cls, store: Store, settings: Settings, job_id: str) -> JobResults:
        """The results of a job in the database."""
        paths = JobPaths(settings.results, job_id)
        return cls(paths, lambda: _from_store(store, paths), lambda: build(store, job_id))

    @classmethod
    def from_folder(cls, folder: Path | str) -> JobResults:
        """The results in a job's folder, copied or exported as Parquet, by its manifest alone.

        Raises ResultsError if it has none.
        """
        paths = JobPaths.at(Path(folder))
        read_manifest(paths.folder)
        return cls(paths, lambda: _from_manifest(paths), lambda: read_manifest(paths.folder))

    def contents(self, *, partial: bool = False) -> Contents:
        """The job and its committed files. Raises NotFinished unless the job has ended or `partial`."""
        contents = self._contents()
        if not (partial or contents.state.ended):
            raise NotFinished(
                f"job {contents.job_id} is {contents.state}, with {contents.done_shards} of {contents.num_shards} "
                "shards done: wait for it, or ask for what there is (partial=True, --partial)"
            )
        return contents

    def files(self, *, partial: bool = False) -> list[ResultFile]:
        """The committed files, all of them here. Raises NotFinished unless the job has ended or `partial`."""
        return list(self.here(self.contents(partial=partial).files))

    def here(self, files: Iterable[ResultFile]) -> Iterator[ResultFile]:
        """These files one by one, each brought here first if it lies elsewhere. Raises ResultsError."""
        for file in files:
            if self._bring is not None:
                self._bring(file)
            yield file

    def rows(self, *, partial: bool = False, arrays: bool = False) -> Iterator[dict[str, Any]]:
        """One dict a sequence; per-token values are lists, or with `arrays` numpy arrays (ids int32, nats float32).

        Raises NotFinished unless the job has ended or `partial`; ResultsError if a file is missing or damaged.
        """
        return rows_of(self.here(self.contents(partial=partial).files), arrays=arrays)

    def errors(self, *, partial: bool = False) -> Iterator[dict[str, Any]]:
        """One dict a prompt that failed: prompt_index, sample_index (None: all samples), custom_id, error.

        Raises as `rows`.
        """
        failed = [file for file in self.contents(partial=partial).files if file.errors is not None]
        return errors_of(self.here(failed))

    def to_batched(self, *, partial: bool = False) -> tuple[BatchedSequences, LogprobResults]:
        """All sequences as the core's containers, in memory; see `jobs.batched`. Raises as `rows`."""
        from jobs.batched import to_batched

        contents = self.contents(partial=partial)
        return to_batched(rows_of(self.here(contents.files), arrays=True), contents.spec["G"], contents.spec["seed"])

    def to_pandas(self, *, partial: bool = False) -> pandas.DataFrame:
        """All sequences as a DataFrame, one row each, in memory. Raises as `rows`."""
        contents = self.contents(partial=partial)
        tables = [contents.schema.empty_table()]
        tables += (table_of(file, contents.own) for file in self.here(contents.files))
        return pa.concat_tables(tables).to_pandas()

    def dataset(self, *, partial: bool = False) -> datasets.Dataset:
        """All sequences as a `datasets.Dataset`, mapped from its cache on disk. Raises as `rows`."""
        import datasets

        contents = self.contents(partial=partial)
        files = [file for file in self.here(contents.files) if file.sequences]
        paths = [str(file.path) for file in files]
        if not paths:
            return datasets.Dataset(contents.schema.empty_table())
        missing = next((path for path in paths if not Path(path).is_file()), None)
        if missing is not None:
            raise ResultsError(f"{missing} is missing: its folder was moved, cleared or copied in part")
        found = datasets.Dataset.from_parquet([glob.escape(path) for path in paths])  # it takes patterns
        for i, name in enumerate(contents.added):
            if name not in found.column_names:  # an export has it in its own file
                found = found.add_column(name, pa.chunked_array([values_of(file, file.added[i]) for file in files]))
        return found

    def to_openai(self, *, partial: bool = False) -> Iterator[dict[str, Any]]:
        """Output lines of an OpenAI batch, one a prompt; see `jobs.openai_output`. Raises as `rows`."""
        contents = self.contents(partial=partial)
        return output_lines(contents, self.here(contents.files), self.manifest()["created_at"])

    def to_trl(self, *, prompts: int = 64, partial: bool = False) -> Iterator[dict[str, list[Any]]]:
        """TRL's rollouts of so many prompts at a time; see `jobs.rollouts`.

        Raises as `rows`, ValueError unless `prompts` is 1 or more.
        """
        if prompts < 1:
            raise ValueError(f"to_trl gives rollouts of 1 prompt or more at a time, not {prompts}")
        return rollouts(self.rows(partial=partial), prompts)


def rows_of(files: Iterable[ResultFile], *, arrays: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of these files, as `JobResults.rows`."""
    return (row for file in files for row in with_added(file, read_rows(file.path, arrays=arrays)))


def errors_of(files: Iterable[ResultFile]) -> Iterator[dict[str, Any]]:
    """The prompt errors of these files, as `JobResults.errors`."""
    return (error for file in files if file.errors is not None for error in read_jsonl(file.errors))


def _from_store(store: Store, paths: JobPaths) -> Contents:
    job = store.job(paths.job_id)
    shards = [shard for shard in store.iter_shards(job.id, ShardState.DONE) if shard.file is not None]
    sidecars = store.sidecars(job.id)  # after the shards: of one that comes in between nothing is looked for
    columns, beside = added_columns(job.spec, (s.column for s in sidecars)), by_shard(sidecars)
    files = [_file(paths, shard, columns, beside.get(shard.index, ())) for shard in shards]
    return Contents(job.id, job.state, job.spec, job.done_shards, job.num_shards, files, columns)


def of_shard(store: Store, paths: JobPaths, spec: dict[str, Any], shard: Shard) -> ResultFile:
    """The files of one done shard, with the columns that every shard of its job shows."""
    [file] = files_of(store, paths, spec, [shard])
    return file


def files_of(store: Store, paths: JobPaths, spec: dict[str, Any], shards: Sequence[Shard]) -> list[ResultFile]:
    """The files of some of a job's done shards, as `of_shard` has those of one; sidecars are looked for once."""
    names = store.sidecar_names(paths.job_id)
    columns = added_columns(spec, (f"{kind}_{name}" for kind, name in names))
    indices = [shard.index for shard in shards]
    beside = by_shard(store.sidecars(paths.job_id, first=min(indices), last=max(indices)) if names and indices else ())
    return [_file(paths, shard, columns, beside.get(shard.index, ())) for shard in shards]


def _file(paths: JobPaths, shard: Shard, columns: Iterable[str], beside: Iterable[Sidecar]) -> ResultFile:
    errors = paths.resolve(shard.errors_file) if shard.errors_file else None
    added = added_of(columns, beside, lambda sidecar: paths.resolve(sidecar.file))
    return ResultFile.of(shard, paths.resolve(shard.file or ""), errors, added)


def added_columns(spec: dict[str, Any], of_sidecars: Iterable[str]) -> list[str]:
    """The columns that a job's readers see beside those of its files: of its sidecars, and of those to come."""
    rounds = {f"{RESAMPLING}_{ROUND}"} if spec.get("resample_equal") else set()
    return sorted({f"{REWARD}_{name}" for name in spec.get("rewards") or ()}.union(rounds, of_sidecars))


def by_shard(sidecars: Iterable[Sidecar]) -> dict[int, list[Sidecar]]:
    """The sidecars of each shard that has any."""
    found: dict[int, list[Sidecar]] = {}
    for sidecar in sidecars:
        found.setdefault(sidecar.shard, []).append(sidecar)
    return found


def _from_manifest(paths: JobPaths) -> Contents:
    data = read_manifest(paths.folder)
    sidecars = [Sidecar(job_id=data["id"], **entry) for entry in data.get("sidecars", ())]  # of old manifests none
    own: list[str] | None = data.get("added_columns")  # of an export, in its file
    columns = added_columns(data["spec"], (s.column for s in sidecars)) if own is None else own
    beside = by_shard(sidecars)

    def added(entry: dict[str, Any]) -> tuple[Added, ...]:
        if own is not None:
            return tuple(Added(name, paths.resolve(entry["file"]), name, entry["sha256"]) for name in own)
        here = beside.get(entry.get("shard", -1), ())
        return added_of(columns, here, lambda sidecar: paths.resolve(sidecar.file))

    files = [
        ResultFile(
            path=paths.resolve(entry["file"]),
            errors=paths.resolve(entry["errors_file"]) if entry["errors_file"] else None,
            shard=entry.get("shard"),
            added=added(entry),
            **{name: entry[name] for name in ("sha256", "sequences", "tokens", "prompt_errors")},
        )
        for entry in data["files"]
    ]
    if any(file.path.suffix != ".parquet" for file in files):
        name = data["files"][0]["file"]
        raise ResultsError(f"{paths.folder} is an export as JSONL: read {name} line by line, or fetch Parquet")
    counts = data["counts"]
    state = JobState(data["state"])
    return Contents(data["id"], state, data["spec"], counts["done_shards"], counts["num_shards"], files, columns)
