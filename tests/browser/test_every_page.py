"""Every page, light and dark, on a desk and on a phone: axe finds nothing, nothing sticks out, a picture is taken."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Arrive
from tests.browser.gallery import Gallery
from tests.browser.looks import SCREENSHOTS, look_at

PAGES = {
    "jobs": "/jobs",
    "jobs-by-state": "/jobs?state=running&state=cancelled&label=run",
    "jobs-none": "/jobs?q=there+is+none+like+this",
    "submit": "/submit",
    "workers": "/workers",
    "docs": "/docs",
    "finished": "/jobs/{finished}",
    "finished-sequences": "/jobs/{finished}/sequences?prompt=3",
    "finished-entropies": "/jobs/{finished}/sequences?prompt=3&by=entropy",
    "finished-charts": "/jobs/{finished}/charts",
    "finished-shards": "/jobs/{finished}/shards",
    "finished-errors": "/jobs/{finished}/errors",
    "finished-log": "/jobs/{finished}/log",
    "finished-files": "/jobs/{finished}/files",
    "flawed": "/jobs/{flawed}",
    "flawed-sequences": "/jobs/{flawed}/sequences",
    "flawed-errors": "/jobs/{flawed}/errors",
    "failed": "/jobs/{failed}",
    "cancelled": "/jobs/{cancelled}",
    "running": "/jobs/{running}",
    "running-charts": "/jobs/{running}/charts",
    "running-shards": "/jobs/{running}/shards",
    "queued": "/jobs/{queued}",
    "queued-sequences": "/jobs/{queued}/sequences",
    "queued-charts": "/jobs/{queued}/charts",
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page(name: str, gallery: Gallery, arrive: Arrive) -> None:
    page = arrive(gallery.site.url).open(PAGES[name].format(**gallery.jobs))
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    assert look_at(page, name) == []


def test_a_job_that_is_not_there(gallery: Gallery, arrive: Arrive, complaints: list[str]) -> None:
    page = arrive(gallery.site.url).open("/jobs/0000deadbeef")
    assert "404" in complaints.pop()
    assert look_at(page, "not-found") == []


def test_a_question_before_a_job_is_cancelled(gallery: Gallery, arrive: Arrive) -> None:
    page = arrive(gallery.site.url).open(f"/jobs/{gallery.jobs['running']}")
    page.get_by_text("Cancel…").click()
    assert look_at(page, "running-cancel") == []


@pytest.mark.parametrize(
    "path", ["/jobs", "/submit", "/jobs/{finished}", "/jobs/{finished}/charts", "/jobs/{running}/shards"]
)
def test_all_is_reached_by_keyboard_and_seen(path: str, gallery: Gallery, arrive: Arrive) -> None:
    page = arrive(gallery.site.url).open(path.format(**gallery.jobs))
    controls = page.locator("a[href], button, input, select, textarea, summary").filter(visible=True)
    reached = []
    while (focused := press_tab(page)) is not None:
        assert focused["outline"].startswith("solid"), focused
        reached.append(focused["number"])
    assert reached == sorted(set(reached)), "each once, in the order in which they stand"
    assert len(reached) >= controls.count()


def press_tab(page: Page) -> dict[str, Any] | None:
    """What has the focus then: its number among all elements, and how that is seen; None past the last one."""
    page.keyboard.press("Tab")
    return page.evaluate(
        """() => {
            const it = document.activeElement, style = getComputedStyle(it)
            const number = [...document.querySelectorAll("*")].indexOf(it)
            if (it === document.body) return null
            return {number, html: it.outerHTML.slice(0, 200), outline: `${style.outlineStyle} ${style.outlineWidth}`}
        }"""
    )


def test_the_icon(gallery: Gallery, arrive: Arrive) -> None:
    visitor = arrive(gallery.site.url)
    icon = visitor.open("/jobs").locator("link[rel=icon]").get_attribute("href")
    answer = visitor.context.request.get(icon or "")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/svg+xml")


@pytest.mark.parametrize(
    ("style", "found"),
    [
        ("color: #999; background: #fff", "color-contrast"),
        ("min-width: 500px", "phone: is 5"),
        ("", "page-has-heading-one"),
    ],
)
def test_what_is_wrong_is_found(style: str, found: str, gallery: Gallery, arrive: Arrive) -> None:
    page = arrive(gallery.site.url).open("/workers")
    page.evaluate("style => { document.querySelector('h1').style.cssText = style }", style)
    if not style:
        page.evaluate("document.querySelector('h1').remove()")
    problems = look_at(page, "wrong")
    assert any(found in problem for problem in problems), problems
    for picture in SCREENSHOTS.glob("wrong-*.png"):
        picture.unlink()
