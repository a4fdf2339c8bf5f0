"""A job that scored another's sequences, beside that other: the same tokens under two models, joined by sequence.

Old is the source, whose sampling distribution q (after temperature and top-p) the tokens were drawn from; new is the
job that scored them. Both p, the model's own distribution, and q are compared, everything in float64:

· the log-ratio of a token, log new − log old;
· the importance weight of a sequence, the product of its tokens' new / old: averages under new are weighted means;
· the effective sample size (Kong 1992) of these weights;
· k1 and k3, two estimates of KL(old ‖ new) in nats a token: means of −log r and of (r − 1) − log r over the tokens,
  r = new / old (Schulman 2020, "Approximating KL Divergence", joschu.net/blog/kl-approx.html).

All this is of q, from which the tokens came. Of p weights and estimates are so only where temperature and top-p are 1,
which makes p and q one; elsewhere they tell how the ratios of p came out on tokens of q.

With top-p a token may lie outside a nucleus. Outside the new one it has weight 0, and k1 and k3 are infinite, as the
divergence is. A token that the old one does not have has no ratio: it is left out and counted, and so is its sequence,
which then has no weight.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.diagnostics import ALTERNATIVES, DIAGNOSTICS
from jobs.errors import JobNotFound, ResultsError, UsageError
from jobs.estimates import effective_samples
from jobs.source import sequence_name
from jobs.spec import MEASUREMENTS

if TYPE_CHECKING:
    import pandas

    from jobs.client import JobHandle

_MEASURED = (*MEASUREMENTS, *DIAGNOSTICS, *ALTERNATIVES)
_Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Shift:
    """How far one distribution, p or q, moved from old to new; see the module's formulas."""

    k1: float  # nats/token
    k3: float  # nats/token
    largest: float  # nats: the largest |log-ratio| of a token that both have
    ess: float  # sequences: effective size of the sample for averages under new
    ess_share: float  # of the sequences that have a weight
    outside: int  # tokens that new does not have: their sequences have weight 0
    unknown: int  # tokens that old does not have: left out of k1 and k3
    unweighted: int  # sequences with such tokens: left out of the effective size


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a job says of the sequences that it scored, beside the job that they are from."""

    source: str  # id
    source_model: str
    source_adapter: str | None
    sequences: int  # compared
    tokens: int
    failed: int  # sequences that could not be scored
    model: Shift | None  # of p; None if either job kept no logprobs, or there is no token
    sampling: Shift | None  # of q; None if either kept no sampling_logprobs


class Compared:
    """The sequences that a job scored, each beside what it was in its source. Looks afresh at every call."""

    def __init__(self, job: JobHandle, source: JobHandle) -> None:
        self._job, self._source = job, source

    def rows(self, *, partial: bool = False) -> Iterator[dict[str, Any]]:
        """One dict a sequence that was scored: the source's row and, beside its columns, what is new.

        `new_logprobs`, `new_entropies`, `new_sampling_logprobs`, `new_sampling_entropies`: [tokens] float32, nats; and
        so the diagnostics that the job kept.
        `log_ratios` (of p) and `sampling_log_ratios` (of q): [tokens] float64, −inf outside the new nucleus and NaN
        outside the old one; None if either job kept no log-probabilities. `log_weight`: their sum over q; None if it is
        not known. Lists are numpy arrays; one row of either job is in memory at a time.

        Raises NotFinished unless the job has ended or `partial`, ResultsError if a file is missing or damaged.
        """
        for old, new in self._pairs(partial):
            model = log_ratios(old["logprobs"], new["logprobs"])
            sampling = log_ratios(old["sampling_logprobs"], new["sampling_logprobs"])
            yield {
                **old,
                **{f"new_{name}": new[name] for name in _MEASURED if name in new},
                "log_ratios": model,
                "sampling_log_ratios": sampling,
                "log_weight": None if sampling is None else _log_weight(sampling),
            }

    def summary(self, *, partial: bool = False, on_row: Callable[[int], None] = lambda done: None) -> Comparison:
        """The figures of all sequences; one log-weight a sequence is kept in memory.

        `on_row` is called with the number of sequences read so far. Raises as `rows`.
        """
        model, sampling = _Shifting(), _Shifting()
        sequences = tokens = 0
        for old, new in self._pairs(partial):
            sequences += 1
            tokens += len(old["response_ids"])
            model.add(log_ratios(old["logprobs"], new["logprobs"]))
            sampling.add(log_ratios(old["sampling_logprobs"], new["sampling_logprobs"]))
            on_row(sequences)
        source = self._source.record
        return Comparison(
            source=source.id,
            source_model=source.model,
            source_adapter=source.adapter,
            sequences=sequences,
            tokens=tokens,
            failed=self._job.refresh().prompt_errors,
            model=model.made(sequences),
            sampling=sampling.made(sequences),
        )

    def to_pandas(self, *, partial: bool = False) -> pandas.DataFrame:
        """`rows` as a DataFrame, in memory."""
        import pandas

        return pandas.DataFrame(self.rows(partial=partial))

    def _pairs(self, partial: bool) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """(source's row, row of the job) of each sequence that was scored. Both come in the source's order."""
        olds = self._source.results.rows(partial=True, arrays=True)
        for new in self._job.results.rows(partial=partial, arrays=True):
            for old in olds:
                if sequence_name(old["custom_id"], old["sample_index"]) == new["custom_id"]:
                    break
            else:
                raise ResultsError(f"job {self._source.id} has no sequence {new['custom_id']}, which was scored of it")
            if not np.array_equal(old["response_ids"], new["response_ids"]):
                raise ResultsError(
                    f"sequence {new['custom_id']} has other tokens in job {self._source.id} than job {self._job.id} "
                    "scored; seqproc doctor looks for files that changed"
                )
            yield old, new


def compared(job: JobHandle) -> Compared:
    """The comparison of a job that scored another's sequences with that other.

    Raises UsageError for any other job, JobNotFound if the other was deleted.
    """
    source = job.record.spec.get("source")
    if source is None:
        raise UsageError(
            f"job {job.id} did not score another job's sequences; seqproc score {job.id} makes one that does"
        )
    try:
        return Compared(job, job.sibling(source))
    except JobNotFound:
        raise JobNotFound(
            f"job {source}, whose sequences job {job.id} scored, was deleted: there is nothing to compare with; "
            "what was scored can still be read"
        ) from None


def log_ratios(old: Any, new: Any) -> _Floats | None:
    """[tokens] log new − log old in float64; NaN where old has no mass. None if either is."""
    if old is None or new is None:
        return None
    before = np.asarray(old, np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(before), np.nan, np.asarray(new, np.float64) - before)


def _log_weight(ratios: _Floats) -> float | None:
    total = float(ratios.sum())
    return None if np.isnan(total) else total


@dataclass(slots=True)
class _Shifting:
    """A Shift in the making; `known` False once a job turned out to lack a log-probability."""

    known: bool = True
    tokens: int = 0
    k1: float = 0.0
    k3: float = 0.0
    largest: float = 0.0
    outside: int = 0
    unknown: int = 0
    unweighted: int = 0
    log_weights: array[float] = field(default_factory=lambda: array("d"))

    def add(self, ratios: _Floats | None) -> None:
        """A sequence's log-ratios."""
        if ratios is None:
            self.known = False
            return
        weight = _log_weight(ratios)
        if weight is None:
            self.unweighted += 1
            self.unknown += int(np.isnan(ratios).sum())
            ratios = ratios[~np.isnan(ratios)]
        else:
            self.log_weights.append(weight)
        self.tokens += len(ratios)
        self.k1 -= float(ratios.sum())
        with np.errstate(over="ignore"):
            self.k3 += float((np.expm1(ratios) - ratios).sum())
        finite = ratios[np.isfinite(ratios)]
        self.outside += len(ratios) - len(finite)
        self.largest = max(self.largest, float(np.abs(finite).max(initial=0.0)))

    def made(self, sequences: int) -> Shift | None:
        if not (self.known and sequences and self.tokens):
            return None
        ess = effective_samples(np.frombuffer(self.log_weights, np.float64))
        return Shift(
            k1=self.k1 / self.tokens,
            k3=self.k3 / self.tokens,
            largest=self.largest,
            ess=ess,
            ess_share=ess / max(len(self.log_weights), 1),
            outside=self.outside,
            unknown=self.unknown,
            unweighted=self.unweighted,
        )
