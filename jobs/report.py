"""What a job's sequences say in figures: accuracy, pass@k, entropy, log-probability, lengths, and how far the two
distributions, the model's and the one that was sampled from, lie apart.

Read from the committed shards in one pass, of which only one log-weight a sequence is kept in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from jobs.compared import Comparison
from jobs.drift import Drift, drift_of
from jobs.errors import JobNotFound, ResultsError
from jobs.estimates import Interval, accuracy, effective_samples, pass_at_every_k
from jobs.parquet import as_numpy, read_pieces
from jobs.ragged import row_sums
from jobs.records import Job
from jobs.reward_figures import choose, figures, rewards_of
from jobs.summary import TOKEN_BINS, ByPosition, Ints, Summary, bucket_starts, columns_for, quantiles, summarise

if TYPE_CHECKING:
    import pandas

    from jobs.client import JobHandle

_MODEL, _SAMPLING = ("logprobs", "entropies"), ("sampling_logprobs", "sampling_entropies")


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one measurement over all tokens, in nats: the mean, and three quantiles (known to 1/32 of their size)."""

    mean: float
    p25: float
    p50: float
    p75: float
    infinite: int  # tokens that are not finite, and in none of these


@dataclass(frozen=True, slots=True)
class Apart:
    """How far the model's distribution p lies from q, the one that was sampled from (temperature, top-p)."""

    kl: float  # nats/token: mean of log q − log p over the sampled tokens, an estimate of KL(q ‖ p) per token
    ess: float  # sequences: effective size of the sample for averages under p
    ess_share: float  # of the sequences


@dataclass(frozen=True, slots=True)
class Report:
    """One job's figures; None where the job has nothing to tell it from."""

    id: str
    name: str | None
    model: str
    adapter: str | None
    labels: dict[str, str]
    state: str
    prompts: int  # that have sequences or are still to be made
    sequences: int
    tokens: int
    prompt_errors: int
    reward: str | None  # that tells right from wrong here; None: the plain rule of `jobs.gold`
    judged: int  # sequences with a verdict; by the plain rule, those with a gold answer
    unjudged: int  # the others, never counted as wrong
    mean_reward: float | None  # over prompts; None by the plain rule
    mean_reward_error: float | None  # its standard error, clustered by prompt
    accuracy: Interval | None  # None also for rewards that are not all 0 or 1
    pass_at_k: dict[int, float]  # for every k up to G; empty without gold answers
    mean_length: float | None  # tokens
    median_length: int | None  # tokens, exact to 256 and known to 1/128 beyond
    finish_reasons: dict[str, int]
    logprob: Spread | None
    entropy: Spread | None
    sampling_logprob: Spread | None
    sampling_entropy: Spread | None
    apart: Apart | None  # also None of sequences that were given, which are no sample of q
    drift: Drift | None  # None: no worker told of any
    compared: Comparison | None = None  # with the job whose sequences it scored, if it did and that is still there

    def flat(self) -> dict[str, Any]:
        """The same as one row of a table: `accuracy_low`, `pass@4`, `entropy_mean`, `finish_eos`, `label_run`, …"""
        row: dict[str, Any] = {}
        for name, value in asdict(self).items():
            match name, value:
                case "pass_at_k", _:
                    row |= {f"pass@{k}": share for k, share in value.items()}
                case "labels" | "finish_reasons", _:
                    row |= {f"{name.removesuffix('_reasons').removesuffix('s')}_{key}": v for key, v in value.items()}
                case "accuracy", (mean, low, high):
                    row |= {"accuracy": mean, "accuracy_low": low, "accuracy_high": high}
                case "apart", dict():
                    row |= value
                case "compared", dict():
                    for of in ("model", "sampling"):
                        row |= {f"compared_{of}_{key}": v for key, v in (value.pop(of) or {}).items()}
                    row |= {f"compared_{key}": v for key, v in value.items()}
                case _, dict():
                    row |= {f"{name}_{key}": v for key, v in value.items()}
                case _:
                    row[name] = value
        return row


class Study(NamedTuple):
    """A report, what it is on, and the summary it was made of: charts and figures by position come from that."""

    job: Job  # as it was when its shards were read
    report: Report
    summary: Summary


def report(
    job: JobHandle,
    *,
    reward: str | None = None,
    partial: bool = False,
    on_shard: Callable[[int], None] = lambda done: None,
) -> Report:
    """The report on a job. Arguments and errors are those of `study`."""
    return study(job, reward=reward, partial=partial, on_shard=on_shard).report


def study(
    job: JobHandle,
    *,
    reward: str | None = None,
    partial: bool = False,
    on_shard: Callable[[int], None] = lambda done: None,
) -> Study:
    """The report on a job with its summary, in one pass over its shards.

    Args:
        job: from `client.get`, of this machine or a server.
        reward: name of the job's reward that accuracy and pass@k are of; by default `math_answer` if the job has it,
            else the plain rule of `jobs.gold`.
        partial: take what there is of a job that has not ended.
        on_shard: called with the number of shards read so far.

    Raises:
        NotFinished: the job has not ended, and not `partial`.
        UsageError: the job has no such reward.
        ResultsError: a file is missing or damaged.
    """
    kept = set(job.record.spec["measurements"] or ())
    measured = tuple(name for name in (*_MODEL, *_SAMPLING) if name in kept)
    columns, results, summary = columns_for(measured), job.results, Summary()
    weights: list[np.ndarray[Any, Any]] = []
    files = results.contents(partial=partial).files
    chosen, rewards = choose(job.id, files, reward), []
    for done, file in enumerate(results.here(files), start=1):
        pieces = list(read_pieces([file.path], columns))
        try:
            summary += summarise(pieces, measured, shards=1)
        except ValueError as error:
            raise ResultsError(f"{file.path} is damaged: {error}; submit the job again for a whole one") from None
        if {"logprobs", "sampling_logprobs"} <= kept and job.record.kind == "generate":
            weights += map(_log_ratios, pieces)
        if chosen is not None:
            rewards.append(rewards_of(file, chosen))
        on_shard(done)
    verdicts = _judged(summary) if chosen is None else _rewarded(chosen, rewards)
    made = _made(job, summary, _apart(weights, summary.tokens), verdicts)
    return Study(job.record, replace(made, compared=_compared(job, partial)), summary)


def table(reports: Iterable[Report]) -> pandas.DataFrame:
    """One row a report, in their order; a column that a report lacks is NaN there. Needs pandas."""
    import pandas

    return pandas.DataFrame([report.flat() for report in reports])


def _made(job: JobHandle, summary: Summary, apart: Apart | None, verdicts: dict[str, Any]) -> Report:
    record, measured = job.record, summary.measured
    return Report(
        id=record.id,
        name=record.name,
        model=record.model,
        adapter=record.adapter,
        labels=dict(record.labels),
        state=str(record.state),
        prompts=record.num_prompts,
        sequences=summary.sequences,
        tokens=summary.tokens,
        prompt_errors=record.prompt_errors,
        unjudged=summary.sequences - verdicts["judged"],
        **verdicts,
        mean_length=summary.tokens / summary.sequences if summary.sequences else None,
        median_length=_median(summary.lengths),
        finish_reasons=dict(sorted(summary.reasons.items())),
        logprob=_spread(measured.get("logprobs"), negative=True),
        entropy=_spread(measured.get("entropies")),
        sampling_logprob=_spread(measured.get("sampling_logprobs"), negative=True),
        sampling_entropy=_spread(measured.get("sampling_entropies")),
        apart=apart,
        drift=drift_of(job.attempts()),
    )


def _compared(job: JobHandle, partial: bool) -> Comparison | None:
    if job.record.spec.get("source") is None:
        return None
    try:
        return job.compared().summary(partial=partial)
    except JobNotFound:  # the job that they are from was deleted
        return None


def _judged(summary: Summary) -> dict[str, Any]:
    """The verdicts by the plain rule."""
    by = {"reward": None, "judged": summary.judged, "mean_reward": None, "mean_reward_error": None}
    prompts = int(summary.correct.sum())
    if not prompts:
        return by | {"accuracy": None, "pass_at_k": {}}
    samples = summary.judged // prompts  # all of a prompt's responses are in its shard, or none
    groups = [(samples, c, int(count)) for c, count in enumerate(summary.correct) if count]
    return by | {"accuracy": accuracy(summary.correct, samples), "pass_at_k": pass_at_every_k(groups)}


def _rewarded(name: str, rewards: Iterable[Any]) -> dict[str, Any]:
    """The verdicts by a reward."""
    found = figures(rewards)
    verdicts = {"reward": name, "judged": found.judged, "accuracy": found.accuracy, "pass_at_k": found.pass_at_k}
    return verdicts | {"mean_reward": found.mean, "mean_reward_error": found.error}


def _median(lengths: Ints) -> int | None:
    if not lengths.sum():
        return None
    bucket = int(np.searchsorted(np.cumsum(lengths), lengths.sum() / 2))
    return int(bucket_starts(len(lengths))[bucket])


def _spread(measured: ByPosition | None, *, negative: bool = False) -> Spread | None:
    """`negative`: of log-probabilities, whose bins hold magnitudes."""
    if measured is None:
        return None
    infinite = int(measured.infinite.sum())
    counts = measured.counts.sum(axis=0)
    count = int(counts.sum()) - infinite
    if count <= 0:
        return None
    shares: Sequence[float] = (0.75, 0.5, 0.25) if negative else (0.25, 0.5, 0.75)
    [found] = quantiles(counts[None], TOKEN_BINS, tuple(shares))
    sign = -1.0 if negative else 1.0
    p25, p50, p75 = (sign * float(value) for value in found)
    return Spread(float(measured.sums.sum()) / count, p25, p50, p75, infinite)


def _log_ratios(piece: pa.Table) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[sequences] log p − log q of each whole response."""
    model, sampling = (piece[name].combine_chunks() for name in ("logprobs", "sampling_logprobs"))
    lengths = np.diff(as_numpy(model.offsets)).astype(np.int64)
    difference = as_numpy(model.flatten()).astype(np.float64) - as_numpy(sampling.flatten())
    return row_sums(difference, lengths)


def _apart(log_weights: list[np.ndarray[Any, Any]], tokens: int) -> Apart | None:
    if not log_weights or not tokens:
        return None
    weights = np.concatenate(log_weights)
    if not np.isfinite(weights).all():
        return None
    ess = effective_samples(weights)
    return Apart(kl=-float(weights.sum()) / tokens, ess=ess, ess_share=ess / len(weights))
