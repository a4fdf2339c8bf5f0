"""Chaos on SQLite."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.chaos.chaos import Chaos
from tests.faults.outages.site import hold_lock


class EmbeddedChaos(Chaos):
    def lane_faults(self) -> dict[Callable[[], None], int]:
        return {self.lock_the_database: 2}

    def lock_the_database(self) -> None:
        holder = hold_lock(self.site.settings.home / "seqproc.db")  # as soon as it gets it
        # In a thread: it may have to wait for a process that only the loop wakes up.
        self._lasts("SQLite locked", threading.Thread(target=holder.communicate).start)
