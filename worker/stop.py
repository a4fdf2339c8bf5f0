"""Whether this worker was asked to leave. A plain flag: a signal handler may set it at any moment.

`threading.Event` will not do: its `set` takes a lock, and a handler that runs while the main thread holds that lock
inside `wait` would wait for itself.
"""

from __future__ import annotations

import time

_SLICE = 0.1  # seconds: how late a sleeper hears of it


class Stop:
    """Set once, never cleared."""

    def __init__(self) -> None:
        self._asked = False

    def set(self) -> None:
        self._asked = True

    def is_set(self) -> bool:
        return self._asked

    def wait(self, seconds: float) -> None:
        """Sleep for so long or until it is set, whichever comes first."""
        deadline = time.monotonic() + seconds
        while not self._asked and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE))
