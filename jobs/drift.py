"""How far narrow weights moved a job's own numbers, as its workers measured it, in one place for reports.

Each worker holds some rows of its first shard against the same weights in float32 (`sequence_processing.drift`) and
tells the outcome, or why there is none, with every attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.records import Attempt


@dataclass(frozen=True, slots=True)
class Drift:
    """Differences of recorded values from float32's, in nats, over the tokens that the workers compared.

    `mean` and `max` are of absolute differences, `bias` is the mean of narrow minus float32. All are None where no
    worker could compare; `reason` then says why, and else what some of them said.
    """

    dtype: str | None  # of the weights, as bfloat16
    tokens: int  # that were compared
    logprob_bias: float | None
    logprob_mean: float | None
    logprob_max: float | None
    entropy_bias: float | None
    entropy_mean: float | None
    entropy_max: float | None
    reason: str | None


def drift_of(attempts: Iterable[Attempt]) -> Drift | None:
    """The drift that these attempts tell of, each measurement counted once; None if they tell nothing."""
    told: dict[str, dict[str, Any]] = {}
    for attempt in attempts:
        found = (attempt.details or {}).get("drift")
        if isinstance(found, dict):
            told[repr(found)] = found
    measured = [found for found in told.values() if found.get("tokens") and "logprobs" in found]
    reasons = dict.fromkeys(str(found["reason"]) for found in told.values() if found.get("reason"))
    if not measured and not reasons:
        return None
    return Drift(
        dtype=", ".join(dict.fromkeys(str(found["dtype"]) for found in measured)) or None,
        tokens=sum(found["tokens"] for found in measured),
        **_spread(measured, "logprob", "logprobs"),
        **_spread(measured, "entropy", "entropies"),
        reason="; ".join(reasons) or None,
    )


def _spread(measured: list[dict[str, Any]], name: str, column: str) -> dict[str, Any]:
    """Means are weighed by the tokens that they are of."""
    spreads: list[tuple[int, Mapping[str, float]]] = [(found["tokens"], found[column]) for found in measured]
    tokens = sum(count for count, _ in spreads)

    def mean(of: str) -> float | None:
        return sum(count * spread[of] for count, spread in spreads) / tokens if tokens else None

    most = max((spread["max"] for _, spread in spreads), default=None)
    return {f"{name}_bias": mean("mean"), f"{name}_mean": mean("mean_abs"), f"{name}_max": most}
