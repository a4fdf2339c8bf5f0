"""The sequences of an ended job as the prompts of one that scores them under another model: the spec's `source`.

Their tokens are taken as they stand, in order of (prompt_index, sample_index): nothing is tokenised again. Each is
named after the sequence that it is, `custom_id#sample_index`, by which `jobs.compared` finds it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jobs.errors import JobNotFound, SpecError
from jobs.parquet import read_pieces
from jobs.records import Job
from jobs.results import JobResults
from jobs.settings import Settings
from jobs.spec import JobSpec, PromptRow
from jobs.store import Store

CARRIED = ("temperature", "top_p", "deterministic", "head_dtype", "dtype", "queue", "priority", "seed")
"""Fields that are as the source has them, unless they are given."""

_COLUMNS = ("custom_id", "sample_index", "prompt_ids", "response_ids")
_LARGEST_SHARD = 100_000


def with_source(
    store: Store, settings: Settings, spec: JobSpec, prompts: Iterable[Any] | None
) -> tuple[JobSpec, Iterable[Any] | None]:
    """A spec that names a source, with what it takes over from there, and the source's sequences as `prompts`.

    Any other spec and its prompts as they are. Raises SpecError if there is no such job or it has not ended; a file of
    it that is missing or damaged is a ResultsError of the iterable.
    """
    if spec.source is None:
        return spec, prompts
    refuse_prompts(prompts)
    try:
        job = store.job(spec.source)
    except JobNotFound as error:
        raise SpecError([f"source: {error}"]) from None
    if not job.state.ended:
        raise SpecError([f"source: job {job.id} is {job.state}; score it once it has ended (seqproc wait {job.id})"])
    if not job.done_sequences:
        raise SpecError([f"source: job {job.id} is {job.state} and has no sequences to score; name another"])
    return _settled(spec, job), _prompts(JobResults.of(store, settings, job.id))


def refuse_prompts(prompts: Iterable[Any] | None) -> None:
    """Raises SpecError if there are prompts beside a source."""
    if prompts is not None:
        raise SpecError(["prompts come from one place, but prompts and source are given"])


def scoring(job: Job, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the spec that scores the sequences of `job`, `fields` among them.

    Its model is theirs unless one is given, and with neither model nor adapter given its adapter too.
    """
    model: dict[str, Any] = {}
    if "model" not in fields:
        names = ("model", "revision") if "adapter" in fields else ("model", "revision", "adapter", "merge_adapter")
        model = {name: value for name in names if (value := job.spec.get(name)) is not None} | {"model": job.model}
    return {"kind": "score", "source": job.id, **model, **fields}


def sequence_name(custom_id: str, sample_index: int) -> str:
    """What a sequence of the source is called in the job that scores it. No two of a job have the same."""
    return f"{custom_id}#{sample_index}"


def _settled(spec: JobSpec, job: Job) -> JobSpec:
    """The spec with all that it leaves open as `job` has it."""
    theirs = {name: job.spec.get(name) for name in CARRIED} | {
        "tokenizer": (job.identity or {}).get("tokenizer"),
        "shard_size": _shard_size(job),
    }
    left_open = {name: value for name, value in theirs.items() if name not in spec.model_fields_set}
    known = {name: value for name, value in left_open.items() if value is not None}
    return spec.model_copy(update=known | {"source": job.id})


def _shard_size(job: Job) -> int | None:
    """As many sequences as a shard of the source has."""
    prompts, samples = job.spec.get("shard_size"), job.spec.get("G")
    return min(prompts * samples, _LARGEST_SHARD) if prompts and samples else None


def _prompts(results: JobResults) -> Iterator[PromptRow]:
    for file in results.here(results.contents().files):
        for piece in read_pieces([file.path], _COLUMNS):
            for row in piece.to_pylist():
                # Unchecked: these were tokens and names before, and a name may now be longer than one that is given.
                yield PromptRow.model_construct(
                    custom_id=sequence_name(row["custom_id"], row["sample_index"]),
                    prompt_token_ids=row["prompt_ids"],
                    response_token_ids=row["response_ids"],
                )
