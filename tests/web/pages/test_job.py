"""One job's pages: how it is, what went wrong, what was said, its files, and what can be done to it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from jobs.paths import worker_log
from jobs.processes import this_process
from jobs.text import plural
from tests.house import House
from tests.trust.test_terminal import HOSTILE, assert_harmless
from tests.web.pages.conftest import Browser, Element, read

TABS = ("", "/shards", "/errors", "/log", "/files")
HX = {"HX-Request": "true"}


def facts(page: Element) -> dict[str, str]:
    return {fact.one("dt").text: fact.one("dd").text for fact in page.one("dl", class_="facts").all("div")}


def offered(page: Element) -> list[str]:
    """What can be done to the job."""
    return [form["action"].rpartition("/")[2] for form in page.all("form", method="post")]


def log(house: House, job_id: str, *lines: dict[str, Any]) -> None:
    path = worker_log(house.settings.results, "w1")
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.writelines(
            json.dumps({"time": 1.0, "level": "info", "job": job_id, "shard": 0, **line}) + "\n" for line in lines
        )


def test_how_it_is(browser: Browser, house: House) -> None:
    job = house.submit(["a", "b", "c"], name="night", labels={"k": "v"}, priority=7, ttl=3).job
    page = browser.see(f"/jobs/{job.id}")
    assert page.one("h1").text == "night"
    shown = facts(page)
    assert {
        name: shown[name] for name in ("Id", "Model", "Prompts × responses", "Seed", "Queue, priority", "Owner")
    } == {
        "Id": job.id,
        "Model": "tiny-arithmetic",
        "Prompts × responses": "3 × 2",
        "Seed": "1",
        "Queue, priority": "default, 7",
        "Owner": "ann",
    }
    assert shown["Labels"] == "k=v"
    assert shown["Kept"] == "3 days after its end"
    assert "No worker of queue default is alive" in page.text
    assert offered(page) == ["cancel"]
    house.run_one()
    assert "4 of 6 sequences, 66 %" in browser.see(f"/jobs/{job.id}").text
    house.finish(job)
    page = browser.see(f"/jobs/{job.id[:6]}")
    assert "6 of 6 sequences, 100 %" in page.text
    assert facts(page)["Kept"].startswith("until 20")
    assert offered(page) == ["delete"]
    assert "No worker" not in page.text


def test_attempts_are_drawn_with_their_figures(browser: Browser, house: House) -> None:
    job = house.submit(["a", "bad", "c", "d"]).job
    done, running = house.run_one(), house.claim()
    assert running is not None
    house.store.beat(running, sequences=1, tokens=42)
    page = browser.see(f"/jobs/{job.id}")
    [lane] = page.all("svg", aria_label="Attempts of worker w1")
    tokens = house.store.shard(job.id, done.shard.index).tokens
    titles = [bar.one("title").text for bar in lane.all("rect")]
    assert [title.partition(" in ")[0] for title in titles] == [
        f"shard 0, attempt 1: done, {plural(tokens, 'token')}",
        "shard 1, attempt 1: running, 42 tokens",
    ]
    assert "3 of 8 sequences" in page.text


def test_shards_by_state_and_page(browser: Browser, house: House) -> None:
    job = house.submit([str(n) for n in range(205)], shard_size=1).job
    house.run_one()
    page = browser.see(f"/jobs/{job.id}/shards")
    assert [row[0] for row in page.rows] == [str(n) for n in range(100)]
    assert page.rows[0][1:5] == ["done", "0–0", "1", "2"]
    second = browser.see(page.one("a", id="next-page")["href"])
    assert [row[0] for row in second.rows] == [str(n) for n in range(100, 200)]
    pending = browser.see(f"/jobs/{job.id}/shards?state=pending")
    following = pending.one("a", id="next-page")["href"]
    assert [row[0] for row in browser.see(following).rows] == [str(n) for n in range(101, 201)]
    assert not browser.see(f"/jobs/{job.id}/shards?state=failed").all("tr")
    assert browser.see(f"/jobs/{job.id}/shards?state=odd", 422)


def test_prompt_errors_with_their_prompts_page_by_page(browser: Browser, house: House) -> None:
    prompts = [{"prompt": "bad", "custom_id": f"q{n}"} if n % 3 else "good" for n in range(160)]
    job = house.submit(prompts, shard_size=7).job
    house.finish(job)
    seen: list[list[str]] = []
    path = f"/jobs/{job.id}/errors"
    while path:
        page = browser.see(path)
        seen += page.rows
        path = page.all("a", id="next-page")[0]["href"] if page.all("a", id="next-page") else ""
    assert seen == [[str(n), f"q{n}", "it is bad", "bad"] for n in range(160) if n % 3]
    assert page.one("a", id="tab-errors").text == f"Errors {len(seen)}"


def test_a_shard_that_failed_says_why(browser: Browser, house: House) -> None:
    job = house.submit(["a", "b"]).job
    claim = house.claim()
    assert claim is not None
    house.store.fail_job(claim, "no such repository")
    for tab in ("", "/errors", "/shards"):
        assert "no such repository" in browser.see(f"/jobs/{job.id}{tab}").text
    assert offered(browser.see(f"/jobs/{job.id}")) == ["retry", "delete"]
    good = house.submit(["a"]).job
    assert "Nothing went wrong so far." in browser.see(f"/jobs/{good.id}/errors").text


def test_the_log_is_of_this_job_newest_first(browser: Browser, house: House) -> None:
    job, other = house.submit(["a"]).job, house.submit(["b"]).job
    assert "No worker has said anything" in browser.see(f"/jobs/{job.id}/log").text
    house.run_one()
    log(house, job.id, {"message": "one"}, {"message": "two", "traceback": "File x", "level": "error"})
    log(house, other.id, {"message": "three"})
    said = browser.see(f"/jobs/{job.id}/log").one("div", id="log").text
    assert said.index("two") < said.index("File x") < said.index("one")
    assert "three" not in said


def test_files_can_be_fetched(browser: Browser, house: House) -> None:
    job = house.submit(["a", "bad", "c"]).job
    assert "No file yet" in browser.see(f"/jobs/{job.id}/files").text
    house.run_one()
    page = browser.see(f"/jobs/{job.id}/files")
    shard = house.store.shard(job.id, 0)
    assert page.one("a", id="file-0")["href"] == f"/api/v1/jobs/{job.id}/files/0"
    assert page.one("a", id="errors-0")["href"] == f"/api/v1/jobs/{job.id}/files/0/errors"
    assert page.one("td", title=shard.sha256 or "").text.startswith((shard.sha256 or "")[:16])
    assert page.one("pre", id="as-fetch").text == f"seqproc fetch {job.id} -o {job.id}/"


@pytest.mark.parametrize("path", ["/jobs/{job}/shards", "/jobs/{job}/errors", "/jobs/{job}/files", "/workers"])
def test_what_stands_in_a_card_is_named_as_its_column(browser: Browser, house: House, path: str) -> None:
    job = house.submit(["a", "bad", "c"]).job
    house.run_one()
    house.store.register_worker("w1", this_process(), queues=["default"], device="cpu")
    table = browser.see(path.format(job=job.id)).one("table", class_="cards")
    columns = [cell.text for cell in table.all("th")]
    for row in table.all("tr")[1:]:
        named = [cell.attributes.get("data-label") for cell in row.all("td")]
        assert len(named) == len(columns)
        assert {name: column for name, column in zip(named, columns, strict=True) if name not in (None, column)} == {}
        unclear = [cell for cell in row.all("td", class_="number") if "data-label" not in cell.attributes]
        assert not unclear, "a number alone says nothing"


def test_prompts_come_back_as_they_were_given(browser: Browser, house: House) -> None:
    given: list[dict[str, Any]] = [
        {"prompt": "a\nb", "answer": "1"},
        {"messages": [{"role": "user", "content": "é"}], "custom_id": "chat"},
        {"prompt_token_ids": [1, 2]},
    ]
    job = house.submit(given).job
    lines = browser.client.get(f"/jobs/{job.id}/prompts.jsonl").text.splitlines()
    assert [json.loads(line) for line in lines] == given
    again = house.submit([json.loads(line) for line in lines]).job
    assert again.snapshot_digest == job.snapshot_digest


def test_cancel_retry_delete(browser: Browser, house: House) -> None:
    job = house.submit(["a", "b", "c"]).job
    house.run_one()
    assert browser.post(f"/jobs/{job.id}/cancel") == f"/jobs/{job.id}"
    page = browser.see(f"/jobs/{job.id}")
    assert page.one("h1").text == job.id
    assert offered(page) == ["retry", "delete"]
    assert browser.post(f"/jobs/{job.id}/retry") == f"/jobs/{job.id}"
    assert house.store.job(job.id).state == "queued"
    assert "cancel it before deleting it" in browser.post(f"/jobs/{job.id}/delete", status=409)
    house.finish(job)
    assert "nothing left to cancel" in browser.post(f"/jobs/{job.id}/cancel", status=409)
    assert browser.post(f"/jobs/{job.id}/delete") == "/jobs"
    assert "no job" in browser.see(f"/jobs/{job.id}", 404).text


def test_only_failed_shards_are_retried_if_asked_so(browser: Browser, house: House) -> None:
    job = house.submit(["a", "b", "c", "d", "e"]).job
    with house.store.db.transaction() as connection:  # as after a cancel that came while another shard failed
        connection.execute(text("UPDATE shards SET state = CASE WHEN \"index\" = 0 THEN 'failed' ELSE 'cancelled' END"))
        counts = "pending_shards = 0, failed_shards = 1, cancelled_shards = 2"
        connection.execute(text(f"UPDATE jobs SET state = 'failed', ended_at = created_at, {counts}"))
    [box] = browser.see(f"/jobs/{job.id}").all("input", name="failed_only")
    browser.post(f"/jobs/{job.id}/retry", {"failed_only": box["value"]})
    assert (house.store.job(job.id).pending_shards, house.store.job(job.id).cancelled_shards) == (1, 2)


def test_a_damaged_row_does_not_hide_its_job(browser: Browser, house: House) -> None:
    job = house.submit(["a"]).job
    with house.store.db.transaction() as connection:
        connection.execute(text("UPDATE jobs SET spec = '7'"))
    assert job.id in browser.see("/jobs").text
    assert "its row in the database was damaged" in browser.see(f"/jobs/{job.id}").text


@pytest.mark.parametrize("tab", TABS)
def test_each_tab_is_polled_by_its_own_url(browser: Browser, house: House, tab: str) -> None:
    job = house.submit(["a", "bad"]).job
    house.run_one()
    whole = browser.see(f"/jobs/{job.id}{tab}")
    live = whole.one("section", id="live")
    answer = browser.client.get(live["hx-get"], headers=HX)
    assert answer.headers["etag"] == whole.one("main")["data-etag"]
    assert [each.attributes.get("id") for each in read(answer.text).inside[:1]] == ["live"]
    named = [each["id"] for each in whole.inside if "id" in each.attributes]
    assert len(named) == len(set(named)), "ids stand once"
    assert whole.one("nav", aria_label="Job").one("a", aria_current="page")


def test_hostile_text_shows_as_marks_and_makes_no_markup(browser: Browser, house: House) -> None:
    hostile = HOSTILE + "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}"
    prompts = [{"prompt": hostile, "custom_id": hostile, "answer": hostile}, "bad"]
    job = house.submit(prompts, name=hostile, labels={hostile: hostile}, stop_strings=[hostile]).job
    house.run_one()
    log(house, job.id, {"message": hostile, "level": hostile, "traceback": hostile, "attempt": hostile})
    house.store.register_worker("w1", replace(this_process(), host=hostile), queues=[hostile], device=hostile)
    house.store.worker_beat("w1", model=hostile, paused=hostile)
    for path in ("/jobs", "/workers", *(f"/jobs/{job.id}{tab}" for tab in TABS)):
        page = browser.client.get(path).text
        assert_harmless(page, ours=False)
        document = read(page)
        assert not document.all("img", src="x"), path
        assert len(document.all("script")) == 2, path
        if path != f"/jobs/{job.id}/files":
            assert "<script>alert(1)" in document.text, "it was there to be shown"
