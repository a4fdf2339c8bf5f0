"""Prompts that failed, each with its text: a page of them, in order of the prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from jobs.jsonl import read_jsonl
from jobs.paths import JobPaths
from jobs.records import Job, Shard
from jobs.snapshot import SnapshotRow, read_rows
from webui.site import Site

_PAGE = 50


@dataclass(frozen=True, slots=True)
class PromptError:
    """`prompt` is the text, or the messages or token ids as JSON."""

    prompt_index: int
    custom_id: str
    error: str
    prompt: str


def prompt_errors(site: Site, job: Job, after: int) -> tuple[list[PromptError], int | None]:
    """Those of prompts behind `after`, and behind which one the next page begins, if there is one.

    Raises ResultsError if their files are gone.
    """
    if not job.prompt_errors:
        return [], None
    paths = site.paths(job.id)
    shards = site.store.shards_with_errors(job.id, after=after, limit=_PAGE + 1)
    found = list(islice(_errors(paths, shards, after), _PAGE + 1))
    return found[:_PAGE], found[_PAGE - 1].prompt_index if len(found) > _PAGE else None


def _errors(paths: JobPaths, shards: list[Shard], after: int) -> Iterator[PromptError]:
    for shard in shards:
        assert shard.errors_file is not None
        rows = [row for row in read_jsonl(paths.resolve(shard.errors_file)) if row["prompt_index"] > after][: _PAGE + 1]
        if not rows:
            continue
        offset = shard.start - shard.first_prompt  # from a prompt's index to its row in the segment
        first, last = rows[0]["prompt_index"], rows[-1]["prompt_index"]
        prompts = read_rows(paths, shard.segment, first + offset, last + offset + 1)
        for row in rows:
            prompt = prompts[row["prompt_index"] - first]
            yield PromptError(row["prompt_index"], row["custom_id"], row["error"], _text(prompt))


def _text(row: SnapshotRow) -> str:
    content = row.content
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
