"""What one worker remembers from one claim to the next, so that its choices are fair over time.

The database knows who is being served now; with fewer workers than owners that says nothing about whose turn it is.
And a claim puts aged jobs before everything else: where all that waits is old, priorities and shares would never count.
So after a shard that was taken for its job's age, this worker lets age rest for as long as that took, loading included:
jobs that are only old get at most half of its time, and one that would have it load another model does so seldom.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from jobs.records import Claim

_REMEMBERED = 16  # owners


class Turns:
    """One worker's memory of whom it served."""

    def __init__(self, age_limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._age_limit = age_limit
        self._clock = clock
        self._age_rests_until = clock()
        self._owners: list[str] = []

    @property
    def served(self) -> Sequence[str]:
        """Owners that were served, latest last."""
        return self._owners

    @property
    def age_limit(self) -> float | None:
        """Seconds without service that put a job first at the next claim; None if age does not count there."""
        return self._age_limit if self._clock() >= self._age_rests_until else None

    @contextmanager
    def serving(self, claim: Claim) -> Iterator[None]:
        """Around the run of a claim, whatever comes of it."""
        began = self._clock()
        try:
            yield
        finally:
            ended = self._clock()
            if claim.aged:
                self._age_rests_until = ended + (ended - began)
            others = [owner for owner in self._owners if owner != claim.job.owner]
            self._owners = [*others, claim.job.owner][-_REMEMBERED:]
