"""Logging in and out, in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Arrive
from tests.browser.gallery import submit
from tests.browser.looks import look_at
from tests.browser.site import Site
from tests.web.conftest import TOKEN


@pytest.fixture
def guarded(isolated_home: Path, migrated_file: Path) -> Iterator[Site]:
    """A server that asks for its token, with a job."""
    with Site.started(isolated_home, migrated_file, SEQPROC_TOKEN=TOKEN) as site:
        submit(site, ["1+1="], name="behind the door")
        yield site


@pytest.mark.parametrize("scripts", [True, False])
def test_in_by_token_and_out_again(scripts: bool, guarded: Site, arrive: Arrive, complaints: list[str]) -> None:
    visitor = arrive(guarded.url, java_script_enabled=scripts)
    page = visitor.open("/jobs?q=door")
    expect(page.get_by_label("Token")).to_be_focused()
    page.get_by_label("Token").fill("a wrong one")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    assert complaints.pop()  # of the answer's status
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/jobs?q=door")
    expect(page.get_by_role("link", name="behind the door")).to_be_visible()
    assert TOKEN not in str(visitor.context.cookies())
    page.get_by_role("button", name="Log out").click()
    page.goto("/jobs")
    expect(page.get_by_label("Token")).to_be_visible()


def test_a_link_with_the_token_lets_in_and_hides_it(guarded: Site, arrive: Arrive) -> None:
    page = arrive(guarded.url).open(f"/jobs?token={TOKEN}&q=door")
    assert page.url == f"{guarded.url}/jobs?q=door"
    expect(page.get_by_role("link", name="behind the door")).to_be_visible()


def test_a_session_that_ends_leads_to_the_login(guarded: Site, arrive: Arrive, complaints: list[str]) -> None:
    visitor = arrive(guarded.url)
    page = visitor.open(f"/jobs?token={TOKEN}")
    visitor.context.clear_cookies()
    expect(page.get_by_label("Token")).to_be_visible(timeout=10_000)  # by the next poll
    assert "401" in complaints.pop()


def test_the_login_page(guarded: Site, arrive: Arrive) -> None:
    page = arrive(guarded.url).open("/login")
    assert look_at(page, "login") == []
