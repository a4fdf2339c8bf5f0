"""Which trackers there are, and what each needs to be installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, get_args

from jobs.errors import UsageError

Track = Literal["wandb", "tensorboard", "mlflow"]
TRACKERS: tuple[Track, ...] = get_args(Track)


def require(name: str) -> None:
    """Raises UsageError if there is no such tracker, or its library is not installed. Imports nothing of it."""
    if name not in TRACKERS:
        raise UsageError(f"{name!r} is no tracker; there are {', '.join(TRACKERS)}")
    found = find_spec(name)
    if found is None or found.origin is None:  # without origin: a mere folder of that name, as wandb itself leaves
        raise UsageError(f"{name} is not installed here: pip install 'sequence-processor[{name}]'")
