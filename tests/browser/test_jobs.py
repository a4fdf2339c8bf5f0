"""The list of jobs: filters that stay, polls that disturb nobody, and all of it without JavaScript too."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Arrive
from tests.browser.gallery import Gallery, submit
from tests.browser.site import Site

LONG = 10_000  # milliseconds, longer than any pause between polls


def listed(page: Page, gallery: Gallery) -> list[str]:
    """Which of the gallery's jobs the list shows."""
    return [name for name, job in gallery.jobs.items() if page.locator(f"#main td a[href='/jobs/{job}']").count()]


def test_filters_are_in_the_address_and_the_back_button_keeps_them(gallery: Gallery, arrive: Arrive) -> None:
    page = arrive(gallery.site.url).open("/jobs")
    search = page.get_by_role("searchbox")
    assert listed(page, gallery) == list(gallery.jobs)
    page.get_by_role("list", name="States").get_by_role("link", name="cancelled 1").click()
    page.wait_for_url("**/jobs?state=cancelled")
    page.get_by_role("list", name="States").get_by_role("link", name="queued 1").click()
    page.wait_for_url("**queued**")
    assert listed(page, gallery) == ["cancelled", "queued"]
    search.fill("half-way")
    search.press("Enter")
    page.wait_for_url("**q=half-way**")
    assert listed(page, gallery) == ["cancelled"]
    filtered = page.url
    page.get_by_role("link", name="stopped half-way").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("stopped half-way")
    page.go_back()
    assert page.url == filtered
    expect(search).to_have_value("half-way")
    assert listed(page, gallery) == ["cancelled"]
    page.go_back()
    expect(search).to_have_value("")
    assert listed(page, gallery) == ["cancelled", "queued"]
    page.get_by_role("link", name="run=sweep").first.click()
    page.wait_for_url("**label=run%3Dsweep**")
    assert listed(page, gallery) == ["cancelled"]


def test_a_poll_disturbs_nobody(site: Site, arrive: Arrive) -> None:
    submit(site, ["1+1="], name="first")
    page = arrive(site.url).open("/jobs")
    page.get_by_role("checkbox", name="Choose first").check()
    page.get_by_role("searchbox").fill("half a wo")
    submit(site, ["2+2="], name="second")
    expect(page.get_by_role("link", name="second")).to_be_visible(timeout=LONG)
    expect(page.get_by_role("checkbox", name="Choose first")).to_be_checked()
    expect(page.get_by_role("checkbox", name="Choose second")).not_to_be_checked()
    expect(page.get_by_role("searchbox")).to_have_value("half a wo")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.get_by_role("link", name="first").focus()
    submit(site, ["3+3="], name="third")
    expect(page.get_by_role("link", name="third")).to_be_visible(timeout=LONG)
    expect(page.get_by_role("link", name="first")).to_be_focused()


def test_polling_pauses_when_told_and_when_nobody_looks(site: Site, arrive: Arrive) -> None:
    visitor, polls = arrive(site.url), []
    visitor.context.clock.install()
    page = visitor.open("/jobs")
    page.on("request", lambda request: polls.append(request.url))

    def polls_of_a_while() -> int:
        polls.clear()
        page.clock.fast_forward(LONG)
        page.wait_for_timeout(200)
        return len(polls)

    assert polls_of_a_while() == 1
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    assert polls_of_a_while() == 0
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    assert polls_of_a_while() == 1
    page.get_by_role("button", name="Pause updates").click()
    assert polls_of_a_while() == 0
    page.reload()
    assert polls_of_a_while() == 0
    with page.expect_request("**/jobs"):
        page.get_by_role("button", name="Resume updates").click()
    assert polls_of_a_while() == 1


def test_a_server_that_is_away_is_said_and_comes_back(site: Site, arrive: Arrive, complaints: list[str]) -> None:
    page = arrive(site.url).open("/jobs")
    with site.web_away():
        expect(page.get_by_role("status")).to_contain_text("No answer from the server", timeout=LONG)
        submit(site, ["1+1="], name="in the meantime")
    expect(page.get_by_role("link", name="in the meantime")).to_be_visible(timeout=LONG)
    expect(page.get_by_role("status")).to_be_empty()
    assert any("ERR_CONNECTION_REFUSED" in complaint for complaint in complaints)
    assert not [complaint for complaint in complaints if "uncaught" in complaint]
    complaints.clear()


@pytest.mark.parametrize("scripts", [True, False])
def test_several_are_cancelled_at_once(scripts: bool, site: Site, arrive: Arrive) -> None:
    jobs = [submit(site, ["1+1="], name=name) for name in ("job 0", "job 1", "job 2", "another")]
    page = arrive(site.url, java_script_enabled=scripts).open("/jobs?q=job")
    expect(page.get_by_role("link", name="job 2")).to_be_visible()
    expect(page.get_by_role("link", name="another")).to_have_count(0)
    for name in ("job 0", "job 1"):
        page.get_by_role("checkbox", name=f"Choose {name}").check()
    page.get_by_role("button", name="Cancel chosen jobs").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Cancel 2 jobs?")
    assert {job.state for job in jobs} == {"queued"}
    page.get_by_role("button", name="Cancel 2 jobs").click()
    page.wait_for_url("**/jobs?q=job*")
    assert [job.state for job in jobs] == ["cancelled", "cancelled", "queued", "queued"]
    assert page.get_by_role("cell", name="cancelled").count() == 2
