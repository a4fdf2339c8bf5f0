"""A spec and its prompts on their way to a server: JSON lines in a temporary file, the spec first.

Everything that can be known here is checked before a byte is sent, by the same code as in a local submit, so that a bad
line is named by its place in the caller's own file. From a file a connection that broke off is simply used again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO

from jobs.jsonl import line
from jobs.prompts import PromptSource
from jobs.snapshot import BadPrompt, Item, SnapshotRow
from jobs.source import refuse_prompts
from jobs.spec import JobSpec
from rlp_datasets import is_external

_OF_PROMPTS = {"prompts", "file", "columns", "dataset", "split", "num_prompts", "replacement", "prompt_seed"}

_PIECE = 8 * 2**20  # bytes of one body of a stream


@dataclass(frozen=True, slots=True)
class Upload:
    """What is sent, and names of columns that say nothing to a job and are not sent."""

    body: IO[bytes]
    ignored_columns: list[str] = field(default_factory=list)


@contextmanager
def upload(
    spec: JobSpec,
    *,
    prompts: Iterable[Any] | None,
    stdin: BinaryIO | None,
    on_prompt: Callable[[int], None] | None = None,
) -> Iterator[Upload]:
    """The spec and its prompts, in memory bounded as `PromptSource` is. Raises SpecError."""
    if spec.source is not None:
        refuse_prompts(prompts)
    brought = prompts is not None or (spec.source is None and (spec.dataset is None or is_external(spec.dataset)))
    said = spec.model_dump(mode="json", exclude_unset=True, exclude=_OF_PROMPTS if brought else {"prompts", "file"})
    if brought and spec.replacement:  # drawn here, of the seed that is sent
        spec = spec.resolve()
        said |= {"G": spec.G, "seed": spec.seed}
    with TemporaryFile() as body:
        body.write(line(said).encode())
        if not brought:
            yield Upload(body)
            return
        source = PromptSource(spec.resolve(), prompts=prompts, stdin=stdin)
        for number, row in enumerate(source, start=1):
            body.write(line(row.model_dump(exclude_none=True)).encode())
            if on_prompt is not None:
                on_prompt(number)
        source.check(lambda: _names(body))
        yield Upload(body, source.ignored_columns)


def _names(body: IO[bytes]) -> Iterator[SnapshotRow]:
    """The prompts by their names."""
    body.seek(0)
    next(body)
    for index, text in enumerate(body):
        yield SnapshotRow(index, json.loads(text).get("custom_id", str(index)))


def body_of(items: Iterable[Item]) -> IO[bytes]:
    """As many of a stream's prompts as a server takes at once, the first at least, as lines."""
    lines = BytesIO()
    for item in items:
        data = {"error": item.error} if isinstance(item, BadPrompt) else item.model_dump(exclude_none=True)
        lines.write(line(data).encode())
        if lines.tell() >= _PIECE:
            break
    return lines
