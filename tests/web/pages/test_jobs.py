"""The list: what it shows, how it is narrowed, paged and polled, and cancelling from it."""

from __future__ import annotations

import pytest

from jobs.intake import Intake
from jobs.snapshot import BadPrompt
from jobs.spec import JobSpec, PromptRow
from jobs.states import JobState
from tests.house import House
from tests.web.pages.conftest import Browser, Element, read
from webui.caller import Caller, _caller

HX = {"HX-Request": "true"}


def ids(page: Element) -> list[str]:
    return [
        link["href"].removeprefix("/jobs/")
        for link in page.all("a")
        if link.attributes.get("id", "").startswith("job-")
    ]


def test_without_jobs_it_says_what_to_do(browser: Browser) -> None:
    assert browser.client.get("/").headers["location"] == "/jobs"
    page = browser.see("/jobs")
    assert "seqproc submit --model tiny-arithmetic" in page.one("pre").text
    assert "No job is like that." in browser.see("/jobs?q=x").text
    assert "states are queued" in browser.see("/jobs?state=odd", 400).text


def test_what_stands_in_a_row(browser: Browser, house: House) -> None:
    job = house.submit(["a", "bad", "c"], name="night run", labels={"sweep": "lr1e-5"}, queue="big").job
    assert house.store.claim("w1", queues=["big"], model=None, age_limit=600)
    page = browser.see("/jobs")
    [row] = page.rows
    assert row[1] == f"night run {job.id} · tiny-arithmetic · ann · big sweep=lr1e-5"
    assert row[2:4] == ["running", "0 % 0 / 6"]
    bar = page.one("progress")
    assert (bar["value"], bar["max"]) == ("0", "6")


def test_each_filter_narrows_and_is_kept_in_every_link(browser: Browser, house: House) -> None:
    first = house.submit(["x"], name="alpha", labels={"run": "7"}).job
    second = house.submit(["x"], name="beta", queue="gpu", labels={"run": "8"}).job
    house.store.cancel(second.id)
    assert ids(browser.see("/jobs")) == [second.id, first.id]
    for query in ("state=queued", "q=ALPH", "label=run%3D7", "queue=default", "label=run&state=queued"):
        page = browser.see(f"/jobs?{query}")
        assert ids(page) == [first.id], query
        assert page.one("section", id="live")["hx-get"] == f"/jobs?{'&'.join(sorted(query.split('&'), reverse=True))}"
    assert ids(browser.see("/jobs?model=tiny-arithmetic&owner=ann")) == [second.id, first.id]
    assert ids(browser.see("/jobs?owner=bob")) == []
    page = browser.see("/jobs?state=queued&q=a&queue=default")
    search = page.one("form", role="search")
    assert {(each["name"], each["value"]) for each in search.all("input") if each["value"]} == {
        ("state", "queued"),
        ("q", "a"),
        ("queue", "default"),
    }
    assert page.one("a", id="state-cancelled")["href"] == "/jobs?state=queued&state=cancelled&q=a&queue=default"


def test_counts_are_of_what_the_other_filters_leave(browser: Browser, house: House) -> None:
    for name in ("zz", "zz", "other"):
        job = house.submit(["x"], name=name).job
    house.store.cancel(job.id)
    page = browser.see("/jobs?q=zz&state=queued")
    counts = {state: page.one("a", id=f"state-{state}").text for state in JobState}
    assert counts["queued"] == "queued 2"
    assert counts["cancelled"] == "cancelled 0"
    assert browser.see("/jobs").one("a", id="state-cancelled").text == "cancelled 1"


def test_pages_hold_every_job_once(browser: Browser, house: House) -> None:
    made = [house.submit(["x"], name=f"n{number}").job.id for number in range(103)]
    seen, path, pages = [], "/jobs?queue=default", 0
    while path:
        page = browser.see(path)
        seen += ids(page)
        older = page.all("a", id="older")
        path = older[0]["href"] if older else ""
        pages += 1
    assert seen == made[::-1]
    assert pages == 3
    assert page.one("a", id="newest")["href"] == "/jobs?queue=default"


def test_a_look_that_found_nothing_goes_on_further_back(
    browser: Browser, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.store.listing._WINDOW", 3)
    wanted = house.submit(["x"], name="zz").job.id
    for number in range(7):
        house.submit(["x"], name=f"n{number}")
    page, looks = browser.see("/jobs?q=zz"), 1
    while not ids(page):
        assert "None of the jobs that were looked at" in page.text
        page, looks = browser.see(page.one("a", id="further")["href"]), looks + 1
    assert ids(page) == [wanted]
    assert looks > 1


def test_cancelling_several_asks_first(browser: Browser, house: House) -> None:
    jobs = [house.submit(["x"], name=f"n{number}").job.id for number in range(3)]
    form = browser.see("/jobs?queue=default").one("form", id="cancel-jobs")
    assert form.one("input", name="back")["value"] == "queue=default"
    asked = read(browser.post("/jobs/cancel", {"job": jobs[:2], "back": "queue=default"}, 200))
    assert {house.store.job(job).state for job in jobs} == {JobState.QUEUED}
    form = asked.one("form", action="/jobs/cancel")
    sent = {name: [each["value"] for each in form.all("input", name=name)] for name in ("job", "back", "confirm")}
    assert browser.post("/jobs/cancel", dict(sent)) == "/jobs?queue=default"
    assert [house.store.job(job).state for job in jobs] == ["cancelled", "cancelled", "queued"]
    assert "No job was chosen" in browser.post("/jobs/cancel", {}, 400)
    assert len(browser.see("/jobs").all("input", name="job")) == 1, "what has ended cannot be chosen"


def test_going_back_leads_to_the_list_only(browser: Browser, house: House) -> None:
    job = house.submit(["x"]).job.id
    for back in ("//evil.example", "https://evil.example/", "\\evil.example", "@evil.example"):
        assert browser.post("/jobs/cancel", {"job": job, "back": back, "confirm": "yes"}).startswith("/jobs?")


def test_what_cannot_be_cancelled_is_said_and_the_rest_is(browser: Browser, house: House) -> None:
    ended, open_ = house.submit(["x"]).job, house.submit(["x"]).job
    house.run_one()
    sent = {"job": [ended.id, open_.id], "confirm": "yes"}
    assert "there is nothing left to cancel" in browser.post("/jobs/cancel", sent, 409)
    assert house.store.job(open_.id).state == "cancelled"


def test_a_named_caller_cancels_its_own_jobs_only(browser: Browser, house: House) -> None:
    job = house.submit(["x"]).job.id
    browser.client.app.dependency_overrides[_caller] = lambda: Caller("bob", operator=False)  # type: ignore[attr-defined]
    for path, data in (("/jobs/cancel", {"job": job, "confirm": "yes"}), (f"/jobs/{job}/cancel", {})):
        assert "belongs to ann" in browser.post(path, dict(data), 403)
    assert house.store.job(job).state == "queued"


def test_a_poll_gets_the_live_part_and_only_what_is_new(browser: Browser, house: House) -> None:
    house.submit(["x"], name="first")
    whole = browser.see("/jobs")
    answer = browser.client.get("/jobs", headers=HX)
    assert answer.headers["etag"] == whole.one("main")["data-etag"], "what the page has need not be sent again"
    assert read(answer.text).inside[0].tag == "section"
    assert "<html" not in answer.text
    assert answer.headers["vary"] == "HX-Request"
    again = browser.client.get("/jobs", headers=HX | {"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.text) == (204, "")


@pytest.mark.parametrize("path", ["/jobs", "/workers", "/submit", "/jobs/nothing"])
def test_every_page_is_whole(browser: Browser, path: str) -> None:
    page = browser.see(path, 404 if path == "/jobs/nothing" else 200)
    named = [each["id"] for each in page.inside if "id" in each.attributes]
    assert len(named) == len(set(named)), "ids stand once"
    assert page.one("title").text.endswith("· SequenceProcessor")
    assert not page.all("style") and not [each for each in page.inside if "style" in each.attributes]
    assert all("src" in script.attributes and not script.text for script in page.all("script"))
    for path in [each["src"] for each in page.all("script")] + [each["href"] for each in page.all("link")]:
        assert browser.client.get(path).status_code == 200, path


def test_a_job_that_is_fed_says_so_far(browser: Browser, house: House) -> None:
    """On every page: nobody knows how many there will be, and at first there is none."""
    intake = Intake(house.store, house.settings)
    job = intake.open(
        JobSpec.parse({"model": "tiny-arithmetic", "G": 2, "shard_size": 2}), owner="ann", feeder=None
    ).job
    pages = (
        f"/jobs/{job.id}",
        "/jobs",
        *(f"/jobs/{job.id}/{name}" for name in ("sequences", "charts", "shards", "files", "errors")),
    )
    for path in pages:
        browser.see(path)
    assert browser.client.get(f"/jobs/{job.id}/prompts.jsonl").text == ""
    assert "No prompt came so far." in browser.see(f"/jobs/{job.id}/sequences").text
    assert "0 of 0 sequences so far, more may come" in browser.see(f"/jobs/{job.id}").text
    assert "no prompt 3: none has come so far" in browser.see(f"/jobs/{job.id}/sequences?prompt=3", 400).text
    assert "seqproc submit prompts.jsonl" in browser.see(f"/jobs/{job.id}").text, "which will be there by then"
    intake.append(job.id, 0, [PromptRow(prompt=text) for text in ("a", "b", "c", "d")])
    intake.append(job.id, 4, [BadPrompt("<stdin>:7: no JSON")])
    house.run_one()
    for path in pages:
        page = browser.see(path)
        assert "%" not in page.text or path.endswith("/charts")
        for bar in page.all("progress"):
            assert "value" not in bar.attributes and bar.text == "so far"
    assert "4 of 10 sequences so far, more may come" in browser.see(f"/jobs/{job.id}").text
    assert "Prompts × responses5 × 2 so far" in browser.see(f"/jobs/{job.id}").text
    assert browser.see("/jobs").rows[0][3] == "so far 4 / 10 so far"
    assert "4 / 10 so far" in read(browser.post("/jobs/cancel", {"job": job.id}, status=200)).text
    assert browser.client.get(f"/jobs/{job.id}/prompts.jsonl").text.splitlines()[3:] == ['{"prompt": "d"}']
    intake.seal(job.id, None)
    assert browser.see("/jobs").rows[0][3] == "40 % 4 / 10"
    assert "so far" not in browser.see(f"/jobs/{job.id}").text
