"""The one place where jobs meet the core: a job's model is loaded and its shards are run.

An engine holds one model at a time; a base stays for the next job's adapter. What it gives back is plain rows; it knows
no database and writes no file.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import json
import logging
import platform
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from jobs.model_roots import outside_roots
from jobs.records import Job, LostSpec
from jobs.snapshot import SnapshotRow
from jobs.spec import MEASUREMENTS, JobSpec, problems
from worker.faults import DeviceLost, JobFault, SpecFault, WorkerFault

if TYPE_CHECKING:
    from sequence_processing import GenerationConfig, Rollout, SequenceProcessor

log = logging.getLogger(__name__)

OnStep = Callable[[int, int], None]  # (new tokens, sequences finished since the last call); may raise to stop


@dataclass(slots=True)
class ShardRows:
    """What running a shard gave, in any order: rows by column name, and prompts that failed, each with its sentence.

    Where something is `measured` of the rows already, by (kind, name) of its sidecar, they stand in the file's order.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[tuple[str, str], list[float | None]] = field(default_factory=dict)

    def fail(self, prompt: SnapshotRow, sentence: str) -> None:
        """The prompt is an error, and no sample of it a row: each stands exactly once."""
        self.rows = [row for row in self.rows if row["prompt_index"] != prompt.prompt_index]
        named = {"prompt_index": prompt.prompt_index, "sample_index": None, "custom_id": prompt.custom_id}
        self.errors.append(named | {"error": sentence})


class Engine(Protocol):
    """What a drain needs of whatever runs shards."""

    @property
    def device(self) -> str: ...

    @property
    def loaded(self) -> tuple[str, str | None] | None:
        """(model, adapter) that is in memory."""

    def prepare(self, job: Job) -> dict[str, str]:
        """Have the job's model in memory; returns what that model is. Raises JobFault, WorkerFault or DeviceLost."""

    def run(self, job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> ShardRows:
        """Generate or score the rows. Whatever `on_step` raises passes through at once. Raises DeviceLost."""

    def details(self) -> dict[str, Any]:
        """Versions and settings that belong in the manifest."""


@dataclass(frozen=True, slots=True)
class _Base:
    """Which base is in memory. A local folder may change under its name: its files' times are part of it."""

    model: str
    revision: str | None
    dtype: str
    stamp: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Adapted:
    """Which model is in memory: a base, and what is over it or merged into it."""

    base: _Base
    adapter: str | None
    stamp: tuple[tuple[str, int, int], ...]
    merged: bool

    @classmethod
    def of(cls, spec: JobSpec) -> _Adapted:
        base = _Base(spec.model, spec.revision, spec.dtype, _stamp(spec.model))
        return cls(base, spec.adapter, _stamp(spec.adapter), spec.merge_adapter)


class CoreEngine:
    """Runs shards through `sequence_processing`. torch and transformers load with the first job, not before."""

    def __init__(self, trusted_models: Sequence[str] = (), model_roots: Sequence[Path] = ()) -> None:
        self._trusted = trusted_models
        self._roots = model_roots
        self._key: _Adapted | None = None
        self._identity: dict[str, str] = {}
        self._model: Any = None  # the base, or what an adapter made of it
        self._base: Any = None  # ready for the next adapter; None where one was merged into it
        self._base_key: _Base | None = None
        self._tokenizer: Any = None
        self._job_id = ""  # whose shards are run
        self._drifts: dict[str, dict[str, Any]] = {}  # by job: measured on its first rows here, told with each attempt

    @property
    def device(self) -> str:
        return str(self._model.device) if self._model is not None else ""

    @property
    def loaded(self) -> tuple[str, str | None] | None:
        return (self._key.base.model, self._key.adapter) if self._key else None

    def prepare(self, job: Job) -> dict[str, str]:
        spec = _spec(job)
        self._job_id = job.id
        identity = self._prepare(spec)
        _check_tokenizer(spec, identity)
        return identity

    def _prepare(self, spec: JobSpec) -> dict[str, str]:
        from sequence_processing import ModelError, SequenceProcessor, model_identity

        key = _Adapted.of(spec)
        try:
            self._check_roots(spec)
            if key == self._key:
                return self._identity
            self._load(spec, key)
            self._identity = model_identity(
                spec.model,
                revision=spec.revision,
                adapter=spec.adapter,
                model=self._model,
                tokenizer=self._tokenizer,
            )
        except ModelError as error:
            raise (JobFault if error.permanent else WorkerFault)(str(error)) from error
        try:
            SequenceProcessor(self._model, self._tokenizer)
        except TypeError as error:  # the core's sentence for a model that it cannot serve
            raise JobFault(str(error)) from error
        self._key = key
        return self._identity

    def _check_roots(self, spec: JobSpec) -> None:
        """As submit did: this operator may have other roots, and a link may lead elsewhere now.

        Raises WorkerFault, or ModelError if there is no such folder.
        """
        from sequence_processing.loading import local_folder

        for name in filter(None, (spec.model, spec.adapter)):
            folder = local_folder(name)
            if folder is not None and (why := outside_roots(folder, self._roots)) is not None:
                raise WorkerFault(why)

    def _may_run_code(self, spec: JobSpec) -> bool:
        """The operator trusts what a model's owner publishes; a revision may be anyone's pull request."""
        named = spec.model if spec.revision is None else f"{spec.model}@{spec.revision}"
        return named in self._trusted

    def _load(self, spec: JobSpec, key: _Adapted) -> None:
        """Bring the model of `key` into memory; its base is read only if it is not there. Raises ModelError."""
        from sequence_processing import load_model
        from sequence_processing.loading import with_adapter

        options: dict[str, Any] = {
            "revision": spec.revision,
            "dtype": None if spec.dtype == "auto" else spec.dtype,
            "trust_remote_code": self._may_run_code(spec),
        }
        self._key = self._model = None
        if key.merged or key.base != self._base_key:
            self._base = self._base_key = self._tokenizer = None
            log.info("loading %s%s", spec.model, f" with adapter {spec.adapter} merged" if key.merged else "")
        gc.collect()  # room for the next one before it comes: modules of some architectures refer to themselves
        if key.merged:  # into weights of its own: rounded sums cannot be taken apart again
            self._model, self._tokenizer = load_model(spec.model, adapter=spec.adapter, merge_adapter=True, **options)
            return
        if self._base is None:
            self._base, self._tokenizer = load_model(spec.model, **options)
            self._base_key = key.base
        if spec.adapter is None:
            self._model = self._base
        else:
            log.info("putting adapter %s over %s", spec.adapter, spec.model)
            self._model = with_adapter(self._base, spec.model, spec.adapter)

    def run(self, job: Job, rows: Sequence[SnapshotRow], on_step: OnStep) -> ShardRows:
        import torch

        from sequence_processing import SequenceProcessor

        spec = _spec(job)
        processor = SequenceProcessor(self._model, self._tokenizer, _config(spec))
        result = ShardRows()
        good = _encode(processor, spec, rows, result)
        failed: dict[int, str] = {}  # by place in `good`

        def on_failed(place: int, _sample: int, error: MemoryError) -> None:
            failed[place] = str(error)

        watched = set() if job.id in self._drifts else _spread(len(good))
        sample: list[Rollout] = []
        try:
            for rollout in _rollouts(processor, spec, good, on_step, on_failed):
                if rollout.sample_index == 0 and rollout.prompt_index in watched:
                    sample.append(rollout)
                result.rows.append(_row(spec, good[rollout.prompt_index].prompt, rollout))
                on_step(0, 1)
        except torch.AcceleratorError as error:  # an illegal access, a lost GPU: nothing runs in this process any more
            raise DeviceLost(f"the device {self.device} failed: {str(error).splitlines()[0]}") from error
        for place, sentence in failed.items():
            result.fail(good[place].prompt, sentence)
        self._measure_drift(good, sample)
        return result

    def _measure_drift(self, good: Sequence[_Encoded], sample: list[Rollout]) -> None:
        """Note how far the sampled rows lie from float32, or why that is not known; no shard fails of it."""
        from sequence_processing.drift import NothingToCompare, measure_drift

        if not any(rollout.response_ids for rollout in sample):
            return  # measured already, or nothing to measure: the next shard may have something
        sample.sort(key=lambda rollout: rollout.prompt_index)
        named = [dataclasses.replace(r, prompt_index=good[r.prompt_index].prompt.prompt_index) for r in sample]
        try:
            self._drifts[self._job_id] = measure_drift(self._model, named).to_dict()
        except NothingToCompare as reason:
            self._drifts[self._job_id] = {"reason": str(reason)}
        except Exception as error:
            sentence = f"{type(error).__name__}: {error}".splitlines()[0]
            self._drifts[self._job_id] = {"reason": sentence}
            log.warning("the drift against float32 could not be measured: %s", sentence)

    def details(self) -> dict[str, Any]:
        import torch

        return {
            "device": self.device,
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "adapter_merged": self._key.merged if self._key and self._key.adapter else None,
            "drift": self._drifts.get(self._job_id),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            **_versions(),
        }


@cache
def _versions() -> dict[str, str]:
    packages = ("sequence-processor", "torch", "transformers", "peft", "tokenizers")
    return {name: importlib.metadata.version(name) for name in packages}


def _spread(count: int) -> set[int]:
    """Up to four of `count` places, evenly apart, the first among them."""
    return {count * i // 4 for i in range(4)} if count else set()


def _stamp(name: str | None) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of each file of a local folder; empty for a hub id."""
    if name is None or not Path(name).is_dir():
        return ()
    files = ((path.name, path.stat()) for path in sorted(Path(name).iterdir()) if path.is_file())
    return tuple((file, stat.st_size, stat.st_mtime_ns) for file, stat in files)


def _spec(job: Job) -> JobSpec:
    if isinstance(job.spec, LostSpec):
        found = reprlib.repr(job.spec.stored)
        raise SpecFault(f"the stored spec of job {job.id} cannot be read: it is {found}; submit the job again")
    try:
        return JobSpec.of_stored(job.spec)
    except ValidationError as error:
        raise SpecFault(f"the stored spec of job {job.id} cannot be read: {'; '.join(problems(error))}") from error


def _check_tokenizer(spec: JobSpec, identity: dict[str, str]) -> None:
    """Raises JobFault if the spec asks for another tokenizer: under this one, its token ids may be other texts."""
    if spec.tokenizer in (None, "any", identity["tokenizer"]):
        return
    whose = "that the job asks for" if spec.source is None else f"whose tokens job {spec.source} holds"
    raise JobFault(
        f"the tokenizer of {spec.model} is not the one {whose}, so that its ids may stand for other texts; "
        "name a model with the same tokenizer, or tokenizer any if you know that they mean the same"
    )


def _config(spec: JobSpec) -> GenerationConfig:
    from sequence_processing import GenerationConfig

    return GenerationConfig(**{field.name: getattr(spec, field.name) for field in dataclasses.fields(GenerationConfig)})


@dataclass(frozen=True, slots=True)
class _Encoded:
    """A prompt that the model can take, in tokens; `response` only where one is to be scored."""

    prompt: SnapshotRow
    ids: list[int]
    response: list[int]


def _encode(
    processor: SequenceProcessor, spec: JobSpec, rows: Sequence[SnapshotRow], result: ShardRows
) -> list[_Encoded]:
    """The prompts that the model can take; the others become errors in `result`."""
    from sequence_processing import PromptError

    good = []
    for row in rows:
        if row.error is not None:
            result.fail(row, row.error)
            continue
        try:
            ids = processor.encode(row.content, spec.chat_template_kwargs)
            response: list[int] = []
            if spec.kind == "score":
                ids, response = processor.encode_pair(ids, _response(row))
            good.append(_Encoded(row, ids, response))
        except PromptError as error:
            result.fail(row, str(error))
    return good


def _response(row: SnapshotRow) -> str | list[int]:
    response = row.response if row.response is not None else row.response_token_ids
    assert response is not None, "submit checks that a row to score has a response"
    return response


def _rollouts(
    processor: SequenceProcessor,
    spec: JobSpec,
    good: Sequence[_Encoded],
    on_step: OnStep,
    on_failed: Callable[[int, int, MemoryError], None],
) -> Iterator[Rollout]:
    def step(new_tokens: int, _live_rows: int) -> None:
        on_step(new_tokens, 0)

    if spec.kind == "score":
        return processor.score([(item.ids, item.response) for item in good], on_step=step, on_failed=on_failed)
    return processor.rollouts(
        [item.ids for item in good],
        spec.G,
        seed=spec.seed,
        prompt_keys=[item.prompt.prompt_index for item in good],
        on_step=step,
        on_failed=on_failed,
    )


def _row(spec: JobSpec, prompt: SnapshotRow, rollout: Rollout) -> dict[str, Any]:
    measured: dict[str, Any] = {
        name: getattr(rollout, name) if name in spec.measurements else None for name in MEASUREMENTS
    }
    return {
        "prompt_index": prompt.prompt_index,
        "sample_index": rollout.sample_index,
        "custom_id": prompt.custom_id,
        "prompt": prompt.prompt if prompt.messages is None else json.dumps(prompt.messages, ensure_ascii=False),
        "response": rollout.text,
        "answer": prompt.answer,
        "prompt_ids": rollout.prompt_ids,
        "response_ids": rollout.response_ids,
        **measured,
        "finish_reason": rollout.finish_reason,
        "stop_offset": rollout.stop_offset,
        "token_ends": rollout.token_ends,
        **{name: values if values.ndim == 1 else list(values) for name, values in rollout.diagnostics.items()},
    }
