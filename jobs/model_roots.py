"""Where local models and adapters may lie: in the folders that the operator named, wherever links lead.

Asked when a job is submitted, and again by the worker that is about to load. Hub ids and packaged models lie in none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.errors import SpecError
from jobs.spec import JobSpec


def check_roots(spec: JobSpec, roots: Sequence[Path]) -> None:
    """Raises SpecError if the spec names a local folder that `roots` do not allow."""
    local = {name: path for name in ("model", "adapter") if (path := getattr(spec, name)) and Path(path).is_absolute()}
    found = {name: outside_roots(Path(path), roots) for name, path in local.items()}
    if problems := [f"{name}: {why}" for name, why in found.items() if why is not None]:
        raise SpecError(problems)


def outside_roots(folder: Path, roots: Sequence[Path]) -> str | None:
    """Why `folder` may not be loaded: it, or a file in it, lies in none of `roots`. Without roots any folder may."""
    real = [root.expanduser().resolve() for root in roots]
    for path in (folder, *folder.rglob("*")) if real else ():
        if not any(path.resolve().is_relative_to(root) for root in real):
            allowed = ", ".join(map(str, roots))
            return f"{path} lies outside the folders that models may come from ({allowed}); see SEQPROC_MODEL_ROOTS"
    return None
