"""What a job's sequences look like together: counts and exact sums that add up, so that every shard is read once.

Nothing of a summary grows with the number of sequences. What it rounds, it rounds by a fixed share:
  · positions and lengths in tokens are exact to 256, and known to 1/128 beyond;
  · a token's nats are counted in bins of 1/32, down to 1e-6 nats (quantiles; means are exact), a sequence's in bins of
    1/256, down to 1e-3.
Bins are of magnitudes: log-probabilities are ≤ 0, entropies ≥ 0, and which one it was its name tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.gold import is_correct
from jobs.parquet import as_numpy
from jobs.ragged import positions_of, row_sums

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

_EXACT_BITS = 8  # lengths below 2 ** this have a bucket each; each octave beyond has half as many


@dataclass(frozen=True)
class Bins:
    """Bins of magnitudes from 2**low to 2**high, 2**bits in each octave; the first holds what is less, the last more.

    The bits of a float, shifted, are the number of its bin: nothing is faster.
    """

    bits: int
    low: int
    high: int

    @property
    def count(self) -> int:
        return ((self.high - self.low) << self.bits) + 2

    @property
    def _before(self) -> int:
        """The shifted bits of the bin before the first of magnitude 2**low."""
        return ((127 + self.low) << self.bits) - 1

    @property
    def edges(self) -> Floats:
        """[count + 1] nats: bin i lies between edges i and i + 1; the last bin, which has no end, has no width."""
        shifted = np.arange(self._before, self._before + self.count, dtype=np.int32) << (23 - self.bits)
        starts = shifted.view(np.float32).astype(np.float64)
        return np.concatenate(([0.0], starts[1:], starts[-1:]))

    def of(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int32]]:
        """The bin of each float32; infinities lie in the last."""
        shifted = (values.view(np.int32) & 0x7FFFFFFF) >> (23 - self.bits)
        shifted -= self._before
        return np.clip(shifted, 0, self.count - 1, out=shifted)


TOKEN_BINS = Bins(bits=5, low=-20, high=6)  # a policy that is sure of itself has tokens of 1e-5 nats
SEQUENCE_BINS = Bins(bits=8, low=-10, high=24)


@dataclass(frozen=True, eq=False)
class ByPosition:
    """One measurement over all tokens, by position in the response (buckets of `bucket_starts`)."""

    counts: Ints = field(default_factory=lambda: np.zeros((0, TOKEN_BINS.count), np.int64))  # [buckets, bins]
    sums: Floats = field(default_factory=lambda: np.zeros(0))  # [buckets] nats, of finite values
    infinite: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # [buckets] values that are not finite

    def __add__(self, other: ByPosition) -> ByPosition:
        return ByPosition(
            _plus(self.counts, other.counts), _plus(self.sums, other.sums), _plus(self.infinite, other.infinite)
        )


@dataclass(frozen=True, eq=False)
class Summary:
    """The sequences of some shards. `a + b` is the summary of the shards of both."""

    shards: int = 0
    sequences: int = 0
    tokens: int = 0
    measured: dict[str, ByPosition] = field(default_factory=dict)  # by column
    lengths: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # [buckets] sequences
    reasons: Counter[str] = field(default_factory=Counter)  # sequences by finish reason
    sequence_counts: Ints = field(default_factory=lambda: np.zeros(SEQUENCE_BINS.count, np.int64))  # by log-probability
    sequence_sum: float = 0.0  # nats, of finite sequence log-probabilities
    sequence_infinite: int = 0
    correct: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # [k] prompts with k correct responses
    judged: int = 0  # sequences with a gold answer

    def __add__(self, other: Summary) -> Summary:
        names = {**self.measured, **other.measured}
        none = ByPosition()
        return Summary(
            shards=self.shards + other.shards,
            sequences=self.sequences + other.sequences,
            tokens=self.tokens + other.tokens,
            measured={name: self.measured.get(name, none) + other.measured.get(name, none) for name in names},
            lengths=_plus(self.lengths, other.lengths),
            reasons=self.reasons + other.reasons,
            sequence_counts=self.sequence_counts + other.sequence_counts,
            sequence_sum=self.sequence_sum + other.sequence_sum,
            sequence_infinite=self.sequence_infinite + other.sequence_infinite,
            correct=_plus(self.correct, other.correct),
            judged=self.judged + other.judged,
        )


def columns_for(measured: tuple[str, ...]) -> list[str]:
    """The columns that `summarise` reads, with these measurements."""
    return ["prompt_index", "response", "answer", "finish_reason", *(measured or ("token_ends",))]


def summarise(pieces: Iterable[pa.Table], measured: tuple[str, ...], *, shards: int) -> Summary:
    """The summary of the rows of some whole shards.

    Args:
        pieces: all of their rows, with the columns that `columns_for` names, in as many tables as there are.
        measured: log-probability and entropy columns; sequences are summed by the first log-probability.
        shards: how many shards these are.

    Raises:
        ValueError: a row has no measurement.
    """
    summary, judged = Summary(shards=shards), []
    for table in pieces:
        summary += _of_tokens(table, measured)
        judged.append(_judge(table))
    return summary + _accuracy(judged)


def _of_tokens(table: pa.Table, measured: tuple[str, ...]) -> Summary:
    columns = {name: table[name].combine_chunks() for name in measured or ("token_ends",)}
    for name, column in columns.items():
        if column.null_count:
            raise ValueError(f"{column.null_count:,} of {len(column):,} rows have no {name}")
    lengths = as_numpy(pc.list_value_length(next(iter(columns.values())))).astype(np.int64)
    places = _places(lengths)
    values = {name: as_numpy(columns[name].flatten()) for name in measured}
    logprobs = next((values[name] for name in measured if name.endswith("logprobs")), None)
    return Summary(
        sequences=len(table),
        tokens=int(lengths.sum()),
        measured={name: _by_position(places, column) for name, column in values.items()},
        lengths=np.bincount(bucket_of(lengths)),
        reasons=_reasons(table["finish_reason"]),
        **({} if logprobs is None else _of_sequences(logprobs, lengths)),
    )


def bucket_of(tokens: Ints) -> Ints:
    """The bucket of each position or length."""
    octave = np.maximum(np.frexp(tokens.astype(np.float64))[1] - _EXACT_BITS, 0).astype(np.int64)
    bucket: Ints = (octave << (_EXACT_BITS - 1)) + (tokens >> octave)
    return bucket


def bucket_starts(count: int) -> Ints:
    """[count + 1]: bucket i holds positions from entry i up to, not including, entry i + 1."""
    bucket = np.arange(count + 1, dtype=np.int64)
    octave = np.maximum((bucket >> (_EXACT_BITS - 1)) - 1, 0)
    starts: Ints = (bucket - (octave << (_EXACT_BITS - 1))) << octave
    return starts


def quantiles(counts: Ints, bins: Bins, shares: tuple[float, ...]) -> Floats:
    """[rows, shares] magnitudes below which these shares of each row of `counts` lie, straight lines within a bin."""
    cumulative = np.cumsum(counts, axis=1)
    edges, rows, found = bins.edges, np.arange(len(counts)), np.zeros((len(counts), len(shares)))
    for i, share in enumerate(shares):
        target = share * cumulative[:, -1]
        at = np.minimum((cumulative < target[:, None]).sum(axis=1), bins.count - 1)
        within = (target - cumulative[rows, at]) / np.maximum(counts[rows, at], 1) + 1
        found[:, i] = edges[at] + np.clip(within, 0, 1) * (edges[at + 1] - edges[at])
    return found


def _places(lengths: Ints) -> Ints:
    """[tokens] the bucket of each token's position."""
    positions = positions_of(lengths)
    longest = int(lengths.max(initial=0))
    if longest <= 1 << _EXACT_BITS:
        return positions
    return np.take(bucket_of(np.arange(longest)), positions, out=positions, mode="clip")  # "raise" would copy


def _by_position(places: Ints, values: np.ndarray[Any, Any]) -> ByPosition:
    buckets = int(places.max(initial=-1)) + 1
    counts = np.bincount(places * TOKEN_BINS.count + TOKEN_BINS.of(values), minlength=buckets * TOKEN_BINS.count)
    finite = np.isfinite(values)
    infinite = np.zeros(buckets, np.int64)
    if not finite.all():
        infinite = np.bincount(places[~finite], minlength=buckets)
        places, values = places[finite], values[finite]
    sums = np.bincount(places, weights=values, minlength=buckets).astype(np.float64)
    return ByPosition(counts.reshape(buckets, TOKEN_BINS.count), sums, infinite)


def _of_sequences(logprobs: np.ndarray[Any, Any], lengths: Ints) -> dict[str, Any]:
    sums = row_sums(logprobs, lengths)
    counts = np.bincount(SEQUENCE_BINS.of(sums.astype(np.float32)), minlength=SEQUENCE_BINS.count)
    finite = np.isfinite(sums)
    return {
        "sequence_counts": counts,
        "sequence_sum": float(sums[finite].sum()),
        "sequence_infinite": int(len(sums) - finite.sum()),
    }


def _reasons(column: Any) -> Counter[str]:
    return Counter({str(item["values"]): int(item["counts"]) for item in pc.value_counts(column).to_pylist()})


def _judge(table: pa.Table) -> tuple[Ints, list[bool]]:
    """Of the rows that have a gold answer: their prompts, and whether they give it."""
    table = table.filter(table["answer"].is_valid())
    texts = zip(table["response"].to_pylist(), table["answer"].to_pylist(), strict=True)
    return as_numpy(table["prompt_index"]), [is_correct(response or "", gold) for response, gold in texts]


def _accuracy(judged: list[tuple[Ints, list[bool]]]) -> Summary:
    if not sum(len(prompts) for prompts, _ in judged):
        return Summary()
    prompts, right = (np.concatenate(column) for column in zip(*judged, strict=True))
    _, prompt = np.unique(prompts, return_inverse=True)
    correct_of = np.bincount(prompt, weights=right).astype(np.int64)
    return Summary(correct=np.bincount(correct_of), judged=len(right))


def _plus(a: Any, b: Any) -> Any:
    """The sum of two arrays, the shorter one as if it went on with zeros."""
    if len(a) < len(b):
        a, b = b, a
    total = a.copy()
    total[: len(b)] += b
    return total
