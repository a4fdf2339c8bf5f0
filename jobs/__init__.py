"""Jobs: what they are, where they are kept, how they are run, and how their results are read.

Knows no model and no broker. Importing it loads neither torch nor transformers nor celery.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.client import Client
    from jobs.handle import JobHandle
    from jobs.progress import Progress
    from jobs.spec import JobSpec, PromptRow

__all__ = ["Client", "JobHandle", "JobSpec", "Progress", "PromptRow"]

_HOME = {
    "Client": "jobs.client",
    "JobHandle": "jobs.handle",
    "Progress": "jobs.progress",
    "JobSpec": "jobs.spec",
    "PromptRow": "jobs.spec",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module when it is first asked for, so that the command line starts at once."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
