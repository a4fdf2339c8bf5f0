"""What a tracker is: it was opened for one run, is told figures at steps, and is closed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

Figures = Mapping[str, float]
"""Finite numbers by name: letters, digits, `_ . -`, and one `/` before which stands what they are of."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a tracker is told of a job. The same each time: whoever opens it again goes on with the same run."""

    id: str  # the job's
    name: str  # the job's, or its id
    config: dict[str, str | float | bool]  # the resolved spec; what is neither number nor text there is JSON
    labels: dict[str, str]


class Tracker(Protocol):
    """One open run. Whatever goes wrong may be raised."""

    where: str  # for people: where to look at the run

    def log(self, step: int, figures: Figures) -> None:
        """`step`: sequences made. Not below an earlier one while the tracker is open; a re-opened one may go back."""

    def close(self, state: str) -> None:
        """Send what is left. `state`: the job's, which may not have ended."""
