"""What a spec may say that came over HTTP: nothing that names a file of this server.

Whether a path exists here is not for others to know: the sentence is the same whether it does or not. Prompts come with
the request, datasets are those that the operator has installed, and local models and adapters lie in the operator's
folders, SEQPROC_MODEL_ROOTS, or there are none.
"""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import Any

from jobs.errors import SpecError
from jobs.settings import Settings
from jobs.spec import JobSpec
from rlp_datasets import is_external

MAX_INLINE_PROMPTS = 10_000
# For what is refused unseen:
_STAND_INS = {"file": None, "dataset": None, "model": "x", "adapter": "x", "prompts": ["x"]}


def admit(fields: dict[str, Any], settings: Settings) -> JobSpec:
    """The spec of these fields. Raises SpecError with a line for each thing wrong."""
    refused = _refused(fields, settings)
    others = fields | {name: _STAND_INS[name] for name in refused}
    try:
        spec = JobSpec.parse(others, remote=True)
    except SpecError as error:
        raise SpecError([*refused.values(), *error.problems]) from None
    if refused:
        raise SpecError(list(refused.values()))
    return spec


def _refused(fields: dict[str, Any], settings: Settings) -> dict[str, str]:
    """The problem of each field that may not say over HTTP what it says."""
    found = {}
    if fields.get("file") is not None:
        found["file"] = "file: would be a file of the server; send the prompts themselves, as lines of JSON"
    dataset = fields.get("dataset")
    if isinstance(dataset, str) and is_external(dataset):
        found["dataset"] = (
            "dataset: over HTTP only those that the operator has installed; Client and seqproc read yours and send the "
            "prompts, other programs send them as lines of JSON"
        )
    for name in ("model", "adapter"):
        value = fields.get(name)
        if isinstance(value, str) and _is_path(value) and not _lies_in(value, settings.model_roots):
            found[name] = (
                f"{name}: is no hub id like org/name, and in no folder that the operator opened (SEQPROC_MODEL_ROOTS)"
            )
    prompts = fields.get("prompts")
    if isinstance(prompts, list) and len(prompts) > MAX_INLINE_PROMPTS:
        found["prompts"] = (
            f"prompts: {len(prompts):,} are too many for one JSON document, which may hold {MAX_INLINE_PROMPTS:,}; "
            "send them as lines to /api/v1/jobs/stream"
        )
    return found


def _is_path(value: str) -> bool:
    return value.startswith(("/", "~", "."))


def _lies_in(value: str, roots: tuple[Path, ...]) -> bool:
    """Judged by the name alone, so that nothing is asked of the disk; where links in it lead is seen at submit."""
    path = Path(os.path.normpath(value))
    known = [root.expanduser() for root in roots]
    return any(path.is_relative_to(name) for root in known for name in (root.absolute(), root.resolve()))
