"""Jobs whose prompts come as a stream, and whoever fed them is gone: they are sealed as truncated.

Seen as a worker's death is: by a heartbeat that stands still, by the onlooker's own clock, and at once for a process of
this host that is gone. A feeder over HTTP may have to wait for a server that is started again, so it has more time than
a worker.
"""

from __future__ import annotations

from jobs.processes import ProcessName, is_dead
from jobs.records import Feed
from jobs.states import broken_off
from jobs.store import Store


class Abandoned:
    """Remembers, from one look to the next, since when each feeder's heartbeat has stood still."""

    def __init__(self, store: Store, lease_seconds: float) -> None:
        self._store = store
        self._silence = silence(lease_seconds)
        self._seen: dict[str, tuple[int, float]] = {}  # heartbeat, and when it was first seen at this count

    def look(self, at: float) -> None:
        """Seal what is abandoned, `at` this moment of a monotonic clock."""
        seen: dict[str, tuple[int, float]] = {}
        for feed in self._store.feeds():
            beat, since = self._seen.get(feed.job_id, (feed.fed, at))
            seen[feed.job_id] = (beat, since) if beat == feed.fed else (feed.fed, at)
            why = self._reason(feed, at - seen[feed.job_id][1])
            if why is not None:
                self._store.seal(feed.job_id, truncated=broken_off(feed.num_prompts, why), fed=feed.fed)
        self._seen = seen

    def oldest(self, at: float) -> float:
        """For how many seconds a heartbeat has stood still by now, at most."""
        return max((at - since for _, since in self._seen.values()), default=0.0)

    def forget(self) -> None:
        """Hearts could not be heard: count anew."""
        self._seen.clear()

    def _reason(self, feed: Feed, still: float) -> str | None:
        process = ProcessName(**feed.feeder) if feed.feeder else None
        if process is not None and is_dead(process):
            return f"the process that fed them ({process.pid} on {process.host}) is gone"
        if still >= self._silence:
            return f"whoever fed them has not been heard of for {still:.0f} s"
        return None


def silence(lease_seconds: float) -> float:
    """Seconds without a word after which a feeder is given up: ten leases, five minutes by default."""
    return 10 * lease_seconds
