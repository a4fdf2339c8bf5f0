"""A report in one file as a browser shows it from the disk: light and dark, on a desk and on a phone."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Request, expect

from jobs.charts.page import write_html
from jobs.report import study
from tests.browser.conftest import Arrive
from tests.browser.gallery import Gallery
from tests.browser.looks import look_at


@pytest.mark.parametrize("names", [["finished"], ["finished", "flawed", "running"]], ids=len)
def test_a_report(names: list[str], gallery: Gallery, arrive: Arrive, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_html(file, [study(gallery.site.client.get(gallery.jobs[name]), partial=True) for name in names])
    asked: list[Request] = []
    window = arrive(file.as_uri())
    window.context.on("request", lambda request: asked.append(request))  # a builtin is no handler
    page = window.open("")
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    assert look_at(page, f"report-of-{len(names)}") == []
    assert [request.url for request in asked] == [file.as_uri()]


def test_the_pointer_reads_figures_without_a_script(gallery: Gallery, arrive: Arrive, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_html(file, [study(gallery.site.client.get(gallery.jobs["finished"]))])
    page = arrive(file.as_uri(), java_script_enabled=False).open("")
    spot = page.locator("#lengths .hit").first
    spot.locator("rect").hover()
    expect(spot.locator("text")).to_have_css("visibility", "visible")
