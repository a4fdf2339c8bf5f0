"""The application in this process over a real store, and a hand that commits shards of rows that a test wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from jobs.paths import JobPaths
from jobs.records import Job
from jobs.settings import Settings
from jobs.shard_files import write_attempt
from jobs.sidecars import REWARD, Measured, keep_sidecar
from jobs.snapshot import SnapshotRow, read_rows
from jobs.spec import JobSpec
from jobs.store import Store
from jobs.submit import submit
from webui.app import create_app

Row = Callable[[SnapshotRow, int], dict[str, Any] | None]


def a_row(prompt: SnapshotRow, sample: int, tokens: list[str], **columns: Any) -> dict[str, Any]:
    """A sequence of these tokens; other columns as given, or plain ones."""
    ends = np.cumsum([len(token) for token in tokens]).tolist()
    count = len(tokens)
    return {
        "prompt_index": prompt.prompt_index,
        "sample_index": sample,
        "custom_id": prompt.custom_id,
        "prompt": prompt.prompt,
        "response": "".join(tokens),
        "answer": prompt.answer,
        "prompt_ids": [1, 2],
        "response_ids": list(range(100, 100 + count)),
        "logprobs": -0.5 * np.arange(count, dtype=np.float32),
        "entropies": np.full(count, 0.25, np.float32),
        "sampling_logprobs": -0.25 * np.arange(count, dtype=np.float32),
        "sampling_entropies": np.full(count, 0.125, np.float32),
        "finish_reason": "stop",
        "token_ends": ends,
        **columns,
    }


@dataclass
class Studio:
    """One store, and the application over it."""

    settings: Settings
    store: Store
    web: TestClient

    def submit(self, prompts: list[Any], **fields: Any) -> Job:
        data = {"model": "tiny-arithmetic", "G": 2, "seed": 1, "shard_size": 2, **fields}
        return submit(self.store, self.settings, JobSpec.parse(data), owner="ann", prompts=prompts).job

    def run_one(self, row: Row) -> None:
        """Claim a shard and commit it; a prompt of whose rows one is None becomes an error."""
        claim = self.store.claim("w1", queues=["default"], model=None, age_limit=600)
        assert claim is not None
        paths, shard = JobPaths(self.settings.results, claim.job.id), claim.shard
        rows: list[dict[str, Any]] = []
        errors = []
        for prompt in read_rows(paths, shard.segment, shard.start, shard.stop):
            made = [row(prompt, sample) for sample in range(claim.job.num_sequences // claim.job.num_prompts)]
            whole = [one for one in made if one is not None]
            if len(whole) == len(made):
                rows += whole
            else:
                where = {"prompt_index": prompt.prompt_index, "sample_index": None, "custom_id": prompt.custom_id}
                errors.append({**where, "error": f"prompt {prompt.prompt} is <b>bad</b>"})
        assert self.store.commit(claim, write_attempt(paths, shard, rows, errors, {}))

    def judge(self, job: Job, name: str, shard: int, values: list[float | None]) -> None:
        """Keep these values as a reward of a done shard's sequences."""
        done = self.store.shard(job.id, shard)
        file = JobPaths(self.settings.results, job.id).resolve(done.file or "")
        measured = Measured(job.id, REWARD, name, shard, done.sha256 or "", values)
        keep_sidecar(self.store, self.settings, file, measured)

    def finished(self, prompts: list[Any], row: Row, **fields: Any) -> Job:
        job = self.submit(prompts, **fields)
        while self.store.job(job.id).pending_shards:
            self.run_one(row)
        return self.store.job(job.id)

    def page(self, path: str, status: int = 200) -> Page:
        answer = self.web.get(path)
        assert answer.status_code == status, answer.text
        return Page(answer.text)


class Page(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the text in each."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []  # (classes and roles around it, from the outermost; text)
        self._around: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.elements.append((tag, found))
        if tag not in ("meta", "link", "input", "img", "br"):
            self._around.append((tag, found.get("class") or found.get("role") or tag))

    def handle_endtag(self, tag: str) -> None:
        assert self._around, tag
        assert self._around.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(name for _, name in self._around), data))

    def words(self, inside: str, *, but: str = "") -> list[str]:
        """The texts that stand directly or deeper in elements of this class, role or tag."""

        def holds(around: tuple[str, ...], name: str) -> bool:
            return any(name in one.split() for one in around)

        return [text for around, text in self.texts if holds(around, inside) and not (but and holds(around, but))]

    @property
    def text(self) -> str:
        return " ".join(" ".join(text for _, text in self.texts).split())


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    settings = Settings(home=tmp_path / "home")
    store = Store.open(settings)
    with TestClient(create_app(settings, loopback=True), base_url="http://localhost") as web:
        yield Studio(settings, store, web)
    store.close()
