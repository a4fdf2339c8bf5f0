"""A real server, real workers and a real Chromium; a test fails if the console complained of anything.

Chromium that is not to be had skips its tests on a laptop and fails them where CI is set: there a skip would be a hole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser import chromium
from tests.browser.chromium import Visitor
from tests.browser.gallery import Gallery, hang
from tests.browser.site import Site

Arrive = Callable[..., Visitor]


@pytest.fixture(scope="package", autouse=True)
def no_settings() -> Iterator[None]:
    """What lives as long as the package reads no settings of the user's either."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("SEQPROC_") and "_TEST_" not in name]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One browser process for all tests here. Not for longer: its event loop is in every other test's way."""
    program = chromium.find()
    if program is None:
        missing = "no Chromium: bash scripts/browser.sh, or set SEQPROC_TEST_CHROMIUM to the program"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program, args=["--disable-gpu", "--disable-sync"])
        yield running
        running.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the console and the network complained of. A test takes out what it brought about."""
    return []


@pytest.fixture
def arrive(browser: Browser, complaints: list[str]) -> Iterator[Arrive]:
    """Visitors of a site; what their browsers complain of fails the test."""
    visitors: list[Visitor] = []

    def come(site: str, **options: Any) -> Visitor:
        visitors.append(Visitor.arrive(browser, site, complaints, **options))
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.context.close()
    assert complaints == []


@pytest.fixture
def site(isolated_home: Path, migrated_file: Path) -> Iterator[Site]:
    """A server without jobs, for tests that change something."""
    with Site.started(isolated_home, migrated_file) as site:
        yield site


@pytest.fixture(scope="package")
def gallery(tmp_path_factory: pytest.TempPathFactory, migrated_file: Path) -> Iterator[Gallery]:
    """A server with a job in every state, to be looked at and not to be changed."""
    with Site.started(tmp_path_factory.mktemp("gallery"), migrated_file) as site:
        yield hang(site)
