"""How long somebody who waits for a job bears with a database or a server that is away."""

from __future__ import annotations

import time

from jobs.errors import StoreError

_SECONDS = 300.0  # a restart of the server is no reason to give up a job of hours


class Patience:
    """Counts from the first failure since the last success."""

    def __init__(self) -> None:
        self._since: float | None = None

    def renew(self) -> None:
        """It answered."""
        self._since = None

    def bear(self, failure: StoreError) -> None:
        """It did not. Raises the failure if that has been so for too long."""
        self._since = self._since or time.monotonic()
        if time.monotonic() - self._since > _SECONDS:
            raise failure
