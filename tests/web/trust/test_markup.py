"""Text from elsewhere is never markup: a page about hostile text has the elements of a page about tame text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from jobs.paths import JobPaths, worker_log
from jobs.processes import this_process
from jobs.settings import Settings
from jobs.shard_files import write_attempt
from jobs.snapshot import read_rows
from jobs.spec import JobSpec
from jobs.store import Store
from jobs.submit import submit
from tests.rows import made_row
from webui.app import create_app

_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_CONTROLS = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), *map(ord, _BIDI))} - set("\n\t")
HOSTILE = (
    "</textarea></title></pre></script><script>alert(1)</script><img src=x onerror=alert(1)>\"' onfocus=alert(1) "
    f"autofocus x='<svg/onload=alert(1)><!-- ]]> {{{{7*7}}}} {{% raw %}} javascript:alert(1) &lt;b&gt; "
    f"\x1b[2J\x85{_BIDI}"
)
TAME = re.sub(r"[^= ]", "t", HOSTILE)  # as long, and a label of it has key and value at the same place
_ADDRESSES = ("href", "src", "action", "formaction", "hx-get", "hx-post", "data", "xlink:href")


class Reader(HTMLParser):
    """What a page is made of, and what it says."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.shape: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: list[str] = []
        self.said = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.shape.append((tag, tuple(name for name, _ in attrs)))
        self.addresses += [value or "" for name, value in attrs if name in _ADDRESSES]
        self.said += "".join(value or "" for _, value in attrs)

    def handle_data(self, data: str) -> None:
        self.said += data

    def handle_comment(self, data: str) -> None:
        self.shape.append(("!--", ()))


class House:
    """A server in this process, and a job in which every text is the same."""

    def __init__(self, home: Path, text: str) -> None:
        self.settings, self.text = Settings(home=home), text
        self.store = Store.open(self.settings)
        self.http = TestClient(create_app(self.settings, loopback=True), base_url="http://localhost")
        spec = JobSpec.parse(
            {
                "model": "tiny-arithmetic",
                "name": text[:256],
                "labels": {text[:256]: text[:256]},
                "G": 2,
                "shard_size": 2,
            }
            | {"stop_strings": [text], "chat_template_kwargs": {text: text}, "seed": 1}
        )
        # As rows of another version, or of a database that somebody wrote to: the spec itself would refuse them.
        spec = spec.model_copy(update={"model": text, "adapter": text})
        prompts = [{"prompt": text, "custom_id": text, "answer": text}, "bad", "waits"]
        self.job = submit(self.store, self.settings, spec, owner=text, prompts=prompts).job
        self._run()

    def _run(self) -> None:
        claim = self.store.claim("w1", queues=["default"], model=None, age_limit=600)
        assert claim is not None
        paths = JobPaths(self.settings.results, self.job.id)
        good, bad = read_rows(paths, claim.shard.segment, claim.shard.start, claim.shard.stop)
        rows = [self._row(made_row(good, sample)) for sample in range(2)]
        error = {"prompt_index": bad.prompt_index, "sample_index": None, "custom_id": bad.custom_id, "error": self.text}
        details = {"device": self.text, "model": self.text}
        assert self.store.commit(claim, write_attempt(paths, claim.shard, rows, [error], details))
        failed = self.store.claim("w1", queues=["default"], model=None, age_limit=600)
        assert failed is not None
        self.store.fail(failed, self.text, limit=1)
        self.store.register_worker("w1", replace(this_process(), host=self.text), queues=[self.text], device=self.text)
        self.store.worker_beat("w1", model=self.text, paused=self.text)
        line = {"time": 1.0, "job": self.job.id, "shard": 0, "attempt": self.text, "level": self.text}
        log = worker_log(self.settings.results, "w1")
        log.parent.mkdir(exist_ok=True)
        log.write_text(json.dumps(line | {"message": self.text, "traceback": self.text}) + "\n")

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        """One token a character of the text, and one that is all of it."""
        length = len(self.text)
        measured = {
            name: [-0.25] * length for name in ("logprobs", "entropies", "sampling_logprobs", "sampling_entropies")
        }
        ends = [*range(1, length), length]
        return row | measured | {"response": self.text, "response_ids": list(range(length)), "token_ends": ends}

    def see(self, method: str, path: str, **options: Any) -> Reader:
        answer = self.http.request(method, path, headers={"Origin": "http://localhost"}, **options)
        assert answer.headers["content-type"].startswith("text/html"), (path, answer.status_code)
        assert not _CONTROLS & set(answer.text), path
        page = Reader(answer.text)
        assert not _CONTROLS & set(page.said), path
        for address in page.addresses:
            assert (address.startswith(("/", "?", "#")) and not address.startswith("//")) or not address, address
        return page


@pytest.fixture(scope="module")
def houses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[House, House]]:
    pair = tuple(House(tmp_path_factory.mktemp(name) / "home", text) for name, text in (("h", HOSTILE), ("t", TAME)))
    yield pair  # type: ignore[misc]
    for house in pair:
        house.store.close()


def alike(houses: tuple[House, House], method: str, path: str, **options: Any) -> None:
    """The page is the same for both; ID and TEXT stand for the job's id and the text."""
    pages = []
    for house in houses:
        text = quote(house.text, safe="")
        form = {name: value.replace("TEXT", house.text) for name, value in options.get("data", {}).items()}
        pages.append(house.see(method, path.replace("ID", house.job.id).replace("TEXT", text), data=form or None))
    assert pages[0].shape == pages[1].shape


@pytest.mark.parametrize("tab", ["", "/sequences", "/charts", "/shards", "/errors", "/log", "/files"])
def test_a_job(houses: tuple[House, House], tab: str) -> None:
    alike(houses, "GET", f"/jobs/ID{tab}")


def test_each_picture(houses: tuple[House, House]) -> None:
    for by in ("logprob", "entropy", "sampling_logprob", "sampling_entropy"):
        alike(houses, "GET", f"/jobs/ID/sequences?prompt=0&by={by}")


@pytest.mark.parametrize(
    "path",
    [
        "/jobs",
        "/jobs?q=TEXT",
        "/jobs?model=TEXT&owner=TEXT&queue=TEXT",
        "/jobs?label=TEXT",
        "/jobs?label=TEXT%3DTEXT",
        "/jobs?state=TEXT",
        "/jobs?before=TEXT",
        "/jobs?TEXT=TEXT",
        "/workers",
        "/jobs/xTEXT",
        "/TEXT",
        "/jobs/ID/sequences?prompt=TEXT",
        "/jobs/ID/sequences?by=TEXT&sort=TEXT",
        "/jobs/ID/shards?after=TEXT",
        "/login?next=TEXT",
    ],
)
def test_lists_and_what_an_address_says(houses: tuple[House, House], path: str) -> None:
    alike(houses, "GET", path)


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/jobs/cancel", {"job": "TEXT", "back": "TEXT"}),
        ("/jobs/cancel", {"job": "ID", "back": "TEXT"}),
        ("/submit", {"model": "TEXT", "G": "TEXT", "name": "TEXT", "labels": "TEXT", "prompts": "TEXT"}),
        ("/submit", {"model": "tiny-arithmetic", "seed": "TEXT", "stop_strings": "TEXT", "dataset": "TEXT"}),
    ],
)
def test_what_a_form_says_back(houses: tuple[House, House], path: str, form: dict[str, str]) -> None:
    alike(houses, "POST", path, data=form)


def test_the_hostile_text_was_there_to_be_shown(houses: tuple[House, House]) -> None:
    said = houses[0].see("GET", f"/jobs/{houses[0].job.id}").said
    assert "<script>alert(1)</script>" in said
    assert "{{7*7}}" in said
